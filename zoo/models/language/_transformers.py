"""Encoders of transformers with a head, by a registered name, a folder, an export or a hub name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import zoo
from zoo.errors import ZooError, suggest
from zoo.models.language._causal_lm import find_causal_lm, silently


@dataclass
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) by ``peft``; all else is frozen but the head.

    Args:
        r: rank.
        alpha: the adapters' output is multiplied by ``alpha / r``.
        dropout: before them.
        modules: ends of the names of the layers that get one; empty: peft's choice.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    modules: list[str] = field(default_factory=list)


def build_transformer(
    auto: Any, name: str, arguments: dict[str, Any], what: str, with_weights: bool = True
) -> nn.Module:
    """A model of transformers with a head, in training mode.

    Args:
        auto: the class that chooses it, such as ``AutoModelForTokenClassification``.
        name: of a registered model; of an architecture of transformers (``bert``), which starts
            fresh; or a folder, an exported model's name, or a hub name.
        arguments: of its configuration.
        what: it is, for messages.
        with_weights: False: of a folder or hub name the shape alone, as a checkpoint follows.

    Raises:
        ZooError: there is none, or it cannot be loaded, or has another shape than ``arguments``
            say; of an architecture, a setting is unknown.
    """
    if name in zoo.list_models():
        return zoo.create_model(name, **arguments)
    if name in CONFIG_MAPPING:
        settings = _known(name, arguments)
        with _said(name, what):
            config = AutoConfig.for_model(name, **settings)
            return auto.from_config(config).train()
    found = find_causal_lm(name, what)
    with _said(found, what):
        if not with_weights:
            return auto.from_config(AutoConfig.from_pretrained(found, **arguments))
        # as it is read it is in eval mode, in which its dropout would rest
        return auto.from_pretrained(found, **arguments).train()


@contextmanager
def _said(found: str, what: str) -> Iterator[None]:
    """What transformers cannot load, as one line."""
    try:
        with silently():
            yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(f"the {what} '{found}' cannot be loaded: {reason[:300]}") from error


def _known(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, if the configuration of the architecture knows each of them."""
    config = AutoConfig.for_model(architecture)
    for name in arguments:
        if not hasattr(config, name):
            known = [*config.to_dict(), *config.attribute_map]
            raise ZooError(f"{name} is no setting of {architecture}; {suggest(name, known)}")
    return arguments


def build_classifier(
    name: str, num_classes: int, arguments: dict[str, Any], with_weights: bool = True
) -> nn.Module:
    """A model of transformers that gives texts a class: its call returns ``logits`` ``[B, C]``.

    Args:
        name, arguments, with_weights: see :func:`build_transformer`.
        num_classes: C.
    """
    settings = {"num_labels": num_classes, **arguments}
    auto = AutoModelForSequenceClassification
    return build_transformer(auto, name, settings, "classifier", with_weights)


def build_tagger(
    name: str, num_classes: int, arguments: dict[str, Any], with_weights: bool = True
) -> nn.Module:
    """A model of transformers that gives each token a class: its call returns ``logits``
    ``[B, L, C]``.

    Args:
        name, arguments, with_weights: see :func:`build_transformer`.
        num_classes: C.
    """
    settings = {"num_labels": num_classes, **arguments}
    return build_transformer(
        AutoModelForTokenClassification, name, settings, "token classifier", with_weights
    )


def load_classifier(source: str | Path) -> nn.Module:
    """A trained classifier of transformers with its head, in eval mode."""
    found = find_causal_lm(source, "classifier")
    with _said(found, "classifier"):
        return AutoModelForSequenceClassification.from_pretrained(found).eval()


def add_lora(model: nn.Module, settings: LoraSettings, task_type: str) -> nn.Module:
    """The model with adapters, which alone learn, with its head.

    Args:
        model: of transformers.
        settings: of the adapters.
        task_type: peft's name of the task, such as ``SEQ_CLS``.

    Raises:
        ZooError: peft is not installed, or finds no layers of these names.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ZooError(
            "model.init_args.lora needs peft, which is not installed: pip install "
            "'ssm-zoo[language]'"
        ) from error
    config = LoraConfig(
        task_type=task_type,
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.modules or None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ZooError(f"model.init_args.lora: {error}") from error
