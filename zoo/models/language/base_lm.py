"""Small Llama-style language models that anyone can train, and how a causal LM is found by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from zoo import compat
from zoo.errors import ZooError, suggest
from zoo.models.language.mamba import MambaLM, is_mamba_config
from zoo.models.registry import register_model

#: Models of transformers that import the ops of ``mamba_ssm`` and ``causal_conv1d``.
MIXED = ("falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "nemotron_h", "granitemoehybrid")


def _llama(settings: dict[str, Any], overrides: dict[str, Any]) -> LlamaForCausalLM:
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    known = LlamaConfig().to_dict()
    for name in overrides:
        if name not in known:
            raise ZooError(f"{name} is no setting of Llama; {suggest(name, known)}")
    return LlamaForCausalLM(LlamaConfig(**(special | settings | overrides)))


@register_model()
def base_lm_small(**overrides: Any) -> LlamaForCausalLM:
    """Target of the small recipes: 6 layers, width 160, grouped-query attention, 1,024 tokens."""
    shape = dict(num_hidden_layers=6, hidden_size=160, intermediate_size=432)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    common = dict(vocab_size=1024, max_position_embeddings=1024, tie_word_embeddings=False)
    return _llama(shape | heads | common, overrides)


@register_model()
def base_lm_draft(**overrides: Any) -> LlamaForCausalLM:
    """Draft model of the small recipes: 1 layer, width 96, the same 1,024 tokens."""
    shape = dict(num_hidden_layers=1, hidden_size=96, intermediate_size=256)
    heads = dict(num_attention_heads=3, num_key_value_heads=3)
    common = dict(vocab_size=1024, max_position_embeddings=1024, tie_word_embeddings=False)
    return _llama(shape | heads | common, overrides)


def cache_folder() -> Path:
    """Where models trained here are kept: ``$ZOO_CACHE``, or ``zoo`` in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ZOO_CACHE", base / "zoo"))


def trained_folder(name: str) -> Path:
    """Folder of a model that a recipe exported under ``name``."""
    return cache_folder() / "models" / name


def export_causal_lm(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, name: str | Path
) -> Path:
    """Write a causal LM in the layout of transformers.

    Args:
        model: of transformers.
        tokenizer: saved beside it, if there is one.
        name: a name for :func:`find_causal_lm`, or a path with a separator in it.
    """
    folder = Path(name) if os.sep in str(name) else trained_folder(str(name))
    with _silently():
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def _silently() -> Iterator[None]:
    """Without the progress bars of transformers, which are over before they can be read."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def find_causal_lm(source: str | Path) -> str:
    """What transformers should load: a folder, the name of an exported model, or a hub name.

    Raises:
        ZooError: if it looks like a folder or an exported model and is not there.
    """
    text = str(source).removeprefix("hf://")
    for folder in (Path(text), trained_folder(text)):
        if (folder / "config.json").is_file():
            return str(folder)
    if text.count("/") == 1 and not text.startswith((".", "/")) and not Path(text).exists():
        return text
    raise ZooError(
        f"there is no causal LM '{source}': expected a folder with config.json, owner/name on the "
        "hub, or a model trained here (python -m zoo.train recipes/decoding/base_lm/small.yaml "
        f"makes 'base_lm_small' in {cache_folder() / 'models'})"
    )


def load_causal_lm(source: str | Path, **options: Any) -> nn.Module:
    """A causal LM in eval mode; see :func:`find_causal_lm`.

    Mamba and Mamba-2, in their authors' layout or that of transformers, are ours; all others are of
    transformers, and ``options`` its own (``dtype`` for both); those with Mamba layers run on the
    ops of this package where the authors' packages are not installed.
    """
    found = find_causal_lm(source)
    try:
        config, _ = PretrainedConfig.get_config_dict(found)
        if is_mamba_config(config):
            place = found if Path(found).is_dir() else f"hf://{found}"
            return MambaLM.from_pretrained(place, config, **options).eval()
        if config.get("model_type") in MIXED:
            compat.install()
        with _silently():
            return AutoModelForCausalLM.from_pretrained(found, **options).eval()
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ZooError(f"the model '{found}' cannot be loaded: {reason[:300]}") from error


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a causal LM."""
    found = find_causal_lm(source)
    if found.startswith("state-spaces/"):  # their repositories hold none
        found = "EleutherAI/gpt-neox-20b"
    try:
        return AutoTokenizer.from_pretrained(found)
    except (OSError, ValueError) as error:
        raise ZooError(f"'{found}' has no tokenizer that can be loaded: {error}") from error
