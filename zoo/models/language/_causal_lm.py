"""Causal language models from a folder, the hub, or a recipe's export: found, loaded, written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from zoo import compat
from zoo.checkpoints.exports import cache_folder, export, trained_folder
from zoo.errors import ZooError
from zoo.models.language.mamba import MambaLM, is_mamba_config
from zoo.models.ssm.h3 import H3LM

#: Models of transformers that import the ops of ``mamba_ssm`` and ``causal_conv1d``.
MIXED = ("falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "nemotron_h", "granitemoehybrid")


def export_causal_lm(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, name: str | Path
) -> Path:
    """Keep a causal LM under a name.

    Args:
        model: of transformers.
        tokenizer: saved beside it, if there is one.
        name: a name for :func:`find_causal_lm`, or a path with a separator in it.

    Returns:
        its folder; see :func:`zoo.checkpoints.exports.export`.
    """
    return export(name, lambda folder: save_causal_lm(model, tokenizer, folder))


def save_causal_lm(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> None:
    """Write a causal LM, and its tokenizer if there is one, in the layout of transformers."""
    with silently():
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def silently() -> Iterator[None]:
    """Without the progress bars of transformers, which are over before they can be read."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def find_causal_lm(source: str | Path, what: str = "causal LM") -> str:
    """What transformers should load: a folder, the name of an exported model, or a hub name.

    Args:
        source: one of these.
        what: it is, for messages.

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
        f"there is no {what} '{source}': expected a folder with config.json, owner/name on the "
        "hub, or a model trained here (python -m zoo.train recipes/decoding/base_lm/small.yaml "
        f"makes 'base_lm_small', a causal LM, in {cache_folder() / 'models'})"
    )


def load_causal_lm(source: str | Path, **options: Any) -> nn.Module:
    """A causal LM in eval mode; see :func:`find_causal_lm`.

    Mamba and Mamba-2, in their authors' layout or that of transformers, and H3 as it is exported
    here are ours; all others are of transformers, and ``options`` its own (``dtype`` for all),
    also with their attention converted (:func:`zoo.models.recurrent.hedgehog.convert`); those with
    Mamba layers run on the ops of this package where the authors' packages are not
    installed.
    """
    found = find_causal_lm(source)
    try:
        config, _ = PretrainedConfig.get_config_dict(found)
        ours = H3LM if config.get("model_type") == "h3" else MambaLM
        if ours is H3LM or is_mamba_config(config):
            place = found if Path(found).is_dir() else f"hf://{found}"
            return ours.from_pretrained(place, config, **options).eval()
        if "hedgehog" in config:
            from zoo.models.recurrent.hedgehog import load_hedgehog  # builds on the small base LM

            return load_hedgehog(found, **options)
        if config.get("model_type") in MIXED:
            compat.install()
        with silently():
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
        tokenizer = AutoTokenizer.from_pretrained(found)
    except (OSError, ValueError) as error:
        raise ZooError(f"'{found}' has no tokenizer that can be loaded: {error}") from error
    # for some model types transformers makes up an empty one where no files are
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise ZooError(f"'{found}' has no tokenizer: its vocabulary is empty")
    return tokenizer
