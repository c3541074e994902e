"""Encoders of transformers with a head, by a registered name, a folder, an export or a hub name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import zoo
from zoo.errors import ZooError
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


def build_classifier(
    name: str, num_classes: int, arguments: dict[str, Any], with_weights: bool = True
) -> nn.Module:
    """A model of transformers that gives texts a class: its call returns ``logits`` ``[B, C]``.

    Args:
        name: of a registered model, or a folder, an exported model's name, or a hub name.
        num_classes: C.
        arguments: of its configuration.
        with_weights: False: of a folder or hub name the shape alone, as a checkpoint follows.

    Raises:
        ZooError: there is none, or it cannot be loaded; or the head has another number of classes.
    """
    settings = {"num_labels": num_classes, **arguments}
    if name in zoo.list_models():
        return zoo.create_model(name, **settings)
    found = find_causal_lm(name, "classifier")
    try:
        with silently():
            if not with_weights:
                config = AutoConfig.from_pretrained(found, **settings)
                return AutoModelForSequenceClassification.from_config(config)
            # as it is read it is in eval mode, in which its dropout would rest
            return AutoModelForSequenceClassification.from_pretrained(found, **settings).train()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(f"the classifier '{found}' cannot be loaded: {reason[:300]}") from error


def load_classifier(source: str | Path) -> nn.Module:
    """A trained classifier of transformers with its head, in eval mode."""
    found = find_causal_lm(source, "classifier")
    try:
        with silently():
            return AutoModelForSequenceClassification.from_pretrained(found).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(f"the classifier '{found}' cannot be loaded: {reason[:300]}") from error


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
