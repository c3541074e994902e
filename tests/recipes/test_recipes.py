"""Every recipe parses; small ones run, full-scale ones build their model, proofs build too."""

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language_models import make_model
from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.proofs.run import read_proofs

RECIPES = ROOT / "recipes"


def recipes(name: str):
    paths = sorted(RECIPES.glob(f"*/*/{name}.yaml"))
    assert paths
    return [pytest.param(path, id="/".join(path.parts[-3:-1])) for path in paths]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> str:
    """What stands in for a language model of the Hugging Face hub."""
    folder = tmp_path_factory.mktemp("language_model")
    make_model("llama").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("path", recipes("paper"))
def test_paper_recipe_builds_its_model(path: Path, language_model: str, monkeypatch):
    # transformers loads no weights onto the meta device, where only shapes are wanted
    shapes = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(language_model))
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: copy.deepcopy(shapes)
    )
    recipe = Recipe(path)
    arguments = recipe.config.model.init_args
    for name, value in vars(arguments).items():
        if not isinstance(value, str):
            continue
        if value.startswith(("data/", "hf://")):  # weights that are not here
            arguments[name] = None
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            arguments[name] = language_model
    with torch.device("meta"):
        task, data = recipe.build()
    assert sum(parameter.numel() for parameter in task.model.parameters()) > 1e3
    assert data.batch_size >= 1
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", recipes("small"))
def test_small_recipe_runs_two_steps(path: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))  # what is exported replaces nobody's model
    quiet()
    recipe = Recipe(path)
    assert path.read_text().startswith("#")
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        limit_test_batches=1,
    )
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    after = list(task.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trainer.test(task, datamodule=data, verbose=False)


@pytest.mark.parametrize("path", recipes("proof"))
def test_proof_can_be_read(path: Path):
    proofs = read_proofs(path)
    assert proofs and all(proof.measurements and proof.must_hold for proof in proofs)
    assert path.read_text().startswith("#")
