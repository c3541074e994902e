"""Draft heads on disk: ``config.json`` and ``model.safetensors``, or the authors' files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from zoo.checkpoints import read_state_dict, save_state_dict
from zoo.checkpoints.exports import trained_folder
from zoo.checkpoints.loading import load_tensors
from zoo.checkpoints.sources import locate
from zoo.decoding.method import needing_nothing
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config
from zoo.models.registry import create_model, list_models

HeadT = TypeVar("HeadT", bound=nn.Module, covariant=True)

WEIGHTS = "model.safetensors"
#: Settings of an adapter that PEFT wrote.
ADAPTER = "adapter_config.json"


class Build(Protocol[HeadT]):
    """Builds a head for a target; the method ``for_target`` of a head's class is one."""

    def __call__(
        self, target: nn.Module, settings: Mapping[str, Any], keys: Collection[str], /
    ) -> HeadT:
        """A head with fresh weights.

        Args:
            target: the model that it will stand beside.
            settings: content of the head's ``config.json``, ours or the authors', empty if there is
                none.
            keys: names of the tensors in the head's file.
        """


def save_head(head: nn.Module, folder: str | Path) -> None:
    """Write a head so that :func:`head_for` can read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = head.config if isinstance(head.config, dict) else head.config.to_dict()
    text = json.dumps({"head": type(head).__name__, **settings}, indent=1, default=str)
    (folder / "config.json").write_text(text + "\n")
    save_state_dict(head.state_dict(), folder / WEIGHTS)


def head_for(
    kinds: tuple[type[HeadT], ...],
    build: Build[HeadT],
    source: nn.Module | str | Path,
    model: nn.Module,
) -> HeadT:
    """A draft head, ready to be used beside ``model``.

    Args:
        kinds: classes, one of which it must be of.
        build: builds it for ``model``.
        source: the head itself; a name that a recipe exported it under, a folder that
            :func:`save_head` wrote or that the authors published; a file of weights;
            ``hf://owner/name``; or the name of a registered model.
    """
    head = source if isinstance(source, nn.Module) else _load(kinds, build, str(source), model)
    if not isinstance(head, kinds):
        raise ZooError(f"{type(head).__name__} was given, expected {_names(kinds)}")
    check_fits(head, model)
    parameter = next(model.parameters())
    return head.to(device=parameter.device, dtype=parameter.dtype).eval()


def check_fits(head: nn.Module, model: nn.Module) -> None:
    """Refuse a head that was trained for states or a vocabulary of other sizes than a target's.

    Raises:
        ZooError: it says which methods need no head.
    """
    settings: Any = getattr(head, "config", None)
    if not isinstance(settings, dict) or "d_model" not in settings:
        return
    target = text_config(model)
    for key, has, what in (
        ("d_model", target.hidden_size, "states of {} numbers"),
        ("vocab_size", target.vocab_size, "a vocabulary of {} tokens"),
    ):
        if settings.get(key, has) != has:
            raise ZooError(
                f"the heads are for {what.format(settings[key])}, the target has {has}: they were "
                f"trained for another one; take its own, or {needing_nothing()}"
            )


def _load(
    kinds: tuple[type[HeadT], ...], build: Build[HeadT], source: str, model: nn.Module
) -> nn.Module:
    if (trained_folder(source) / WEIGHTS).is_file():
        source = str(trained_folder(source))
    elif not Path(source).exists() and "/" not in source:
        if source not in list_models():
            raise ZooError(
                f"there are no heads '{source}': expected a folder or file with them, "
                "hf://owner/name, the name of a registered model, or a name that a recipe exported "
                "them under"
            )
        return create_model(source, pretrained=True)
    tensors, settings = _tensors(source), _settings(source)
    saved_as = settings.get("head")
    if saved_as is not None and saved_as not in (kind.__name__ for kind in kinds):
        raise ZooError(f"{source} holds {saved_as}, expected {_names(kinds)}")
    head = build(model, settings, tensors.keys())
    load_tensors(head, tensors, source)
    return head


def _tensors(source: str) -> dict[str, Tensor]:
    """The tensors of a source; of PEFT's folder also those of the files beside the adapter's, with
    their file's name before each."""
    folder = Path(source)
    if not (folder / ADAPTER).is_file():
        return read_state_dict(source, mmap=True)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
    if len(files) != 1:
        raise ZooError(
            f"{folder} has {ADAPTER}, but {len(files)} files of an adapter's weights: expected "
            "one, adapter_model.safetensors or adapter_model.bin"
        )
    tensors = dict(read_state_dict(files[0], mmap=True))
    for file in sorted(folder.glob("*.pt")):
        tensors |= {f"{file.stem}.{key}": t for key, t in read_state_dict(file, mmap=True).items()}
    return tensors


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _settings(source: str) -> dict[str, Any]:
    """Content of the ``config.json`` beside the weights, or of PEFT's file."""
    if source.startswith("hf://"):
        address, _, revision = source.partition("@")
        repository = "/".join(address.split("/")[:4])
        ends = [f"{name}@{revision}".rstrip("@") for name in ("config.json", ADAPTER)]
        try:
            file = locate(f"{repository}/{ends[0]}").files[0]
        except ZooError:
            file = locate(f"{repository}/{ends[1]}").files[0]
    else:
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        file = folder / ("config.json" if (folder / "config.json").is_file() else ADAPTER)
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise ZooError(f"{file} is no JSON: {error}") from error
