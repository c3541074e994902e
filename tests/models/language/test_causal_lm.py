"""Causal language models: where they are looked for, who loads them, and what is written."""

import json
from types import SimpleNamespace

import pytest
from transformers.utils import logging

from zoo.errors import ZooError
from zoo.models.language import _causal_lm
from zoo.models.language._causal_lm import (
    find_causal_lm,
    load_causal_lm,
    load_tokenizer,
    save_causal_lm,
)


class Saved:
    """Notes what it is asked to save, and whether progress bars are shown meanwhile."""

    def __init__(self):
        self.calls = []

    def save_pretrained(self, folder):
        self.calls.append((folder, logging.is_progress_bar_enabled()))


@pytest.mark.parametrize("shown", [True, False])
def test_written_silently(shown):
    before = logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    switch[shown]()
    try:
        model, tokenizer = Saved(), Saved()
        save_causal_lm(model, tokenizer, "here")
        assert model.calls == [("here", False)] and tokenizer.calls == [("here", shown)]
        save_causal_lm(model, None, "there")
        assert len(model.calls) == 2 and len(tokenizer.calls) == 1
        assert logging.is_progress_bar_enabled() == shown
    finally:
        switch[before]()


def test_where_models_are_looked_for(in_tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(in_tmp_path / "cache"))
    kept = in_tmp_path / "cache" / "models" / "mine"
    for folder in (kept, in_tmp_path / "owner" / "here"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (in_tmp_path / "owner" / "empty").mkdir()
    assert find_causal_lm("mine") == str(kept)
    assert find_causal_lm("owner/here") == "owner/here"
    assert find_causal_lm(in_tmp_path / "owner" / "here") == str(in_tmp_path / "owner" / "here")
    assert find_causal_lm("owner/name") == find_causal_lm("hf://owner/name") == "owner/name"
    for missing in ("yours", "owner/empty", "./name", "/name", "a/b/c"):
        with pytest.raises(ZooError, match=f"no causal LM '{missing}'"):
            find_causal_lm(missing)


class Loader:
    """Notes what it is asked to load, and by what name."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def from_pretrained(self, *args, **options):
        self.calls.append((args, options))
        words = {"get_vocab": lambda: {"a": 0}, "all_special_tokens": []}
        return SimpleNamespace(eval=lambda: self.name, **words)


@pytest.fixture
def loaders(monkeypatch, in_tmp_path):
    names = ("H3LM", "MambaLM", "AutoModelForCausalLM", "AutoTokenizer")
    made = {name: Loader(name) for name in names}
    for name, loader in made.items():
        monkeypatch.setattr(_causal_lm, name, loader)
    made["installed"] = []
    monkeypatch.setattr(_causal_lm.compat, "install", lambda: made["installed"].append(1))
    return made


@pytest.mark.parametrize(
    ("config", "loader", "installs"),
    [
        ({"model_type": "h3"}, "H3LM", 0),
        ({"model_type": "mamba"}, "MambaLM", 0),
        ({"model_type": "llama"}, "AutoModelForCausalLM", 0),
        ({"model_type": "jamba"}, "AutoModelForCausalLM", 1),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_who_loads(loaders, monkeypatch, config, loader, installs, local):
    monkeypatch.setattr(_causal_lm.PretrainedConfig, "get_config_dict", lambda source: (config, {}))
    monkeypatch.setattr(_causal_lm, "find_causal_lm", lambda source: "." if local else "own/er")
    assert load_causal_lm("any", dtype="half") == loader
    ((args, options),) = loaders[loader].calls
    place = "." if local else "own/er"
    if loader == "AutoModelForCausalLM":
        assert args == (place,)
    else:
        assert args == (place if local else f"hf://{place}", config)
    assert options == {"dtype": "half"} and len(loaders["installed"]) == installs


def test_the_tokenizer_is_beside_the_model(loaders, monkeypatch):
    for source, place in (
        ("owner/name", "owner/name"),
        ("state-spaces/mamba-130m", "EleutherAI/gpt-neox-20b"),
    ):
        load_tokenizer(source)
        assert loaders["AutoTokenizer"].calls.pop() == ((place,), {})


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_what_cannot_be_loaded_is_one_line(in_tmp_path, monkeypatch, error):
    (in_tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    def fail(*args, **kwargs):
        raise error("broken\nand more")

    monkeypatch.setattr(_causal_lm.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(_causal_lm.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ZooError, match=r"cannot be loaded: broken$"):
        load_causal_lm(in_tmp_path)
    with pytest.raises(ZooError, match="has no tokenizer that can be loaded: broken"):
        load_tokenizer(in_tmp_path)
