"""Draft heads on disk: ``config.json`` and ``model.safetensors``, or the authors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from zoo.checkpoints import load_pretrained, save_state_dict
from zoo.errors import ZooError
from zoo.models.language.base_lm import trained_folder
from zoo.models.registry import create_model

HeadT = TypeVar("HeadT", bound=nn.Module)

WEIGHTS = "model.safetensors"


def save_head(head: nn.Module, folder: str | Path) -> None:
    """Write a head so that :func:`head_for` can read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = head.config if isinstance(head.config, dict) else head.config.to_dict()
    text = json.dumps({"head": type(head).__name__, **settings}, indent=1, default=str)
    (folder / "config.json").write_text(text + "\n")
    save_state_dict(head.state_dict(), folder / WEIGHTS)


def head_for(cls: type[HeadT], source: HeadT | str | Path, model: nn.Module) -> HeadT:
    """A draft head, ready to be used beside ``model``.

    Args:
        cls: its class, which says in ``from_config`` how to build it.
        source: the head itself; a name that a recipe exported it under, a folder that
            :func:`save_head` wrote or that the authors published; a file of weights;
            ``hf://owner/name``; or the name of a registered model.
    """
    if not isinstance(source, nn.Module) and (trained_folder(str(source)) / WEIGHTS).is_file():
        source = trained_folder(str(source))
    if isinstance(source, nn.Module):
        head = source
    elif not Path(source).exists() and "/" not in str(source):
        head = create_model(str(source), pretrained=True)
    else:
        head = cls.from_config(_settings(source), model.config)
        load_pretrained(head, str(source))
    if not isinstance(head, cls):
        raise ZooError(f"{type(head).__name__} was given, expected {cls.__name__}")
    parameter = next(model.parameters())
    return head.to(device=parameter.device, dtype=parameter.dtype).eval()


def _settings(source: str | Path) -> dict[str, Any]:
    folder = Path(source)
    file = (folder if folder.is_dir() else folder.parent) / "config.json"
    if str(source).startswith("hf://"):
        from huggingface_hub import hf_hub_download

        owner_name = "/".join(str(source).removeprefix("hf://").split("/")[:2])
        file = Path(hf_hub_download(owner_name, "config.json"))
    return json.loads(file.read_text()) if file.is_file() else {}
