"""The weights inside a checkpoint: which of its dictionaries they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.formats import file_format, read_file
from zoo.checkpoints.report import some
from zoo.checkpoints.sources import Located, locate
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: Names under which training scripts store weights, in the order they are taken.
CONTAINERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "teacher",
    "student",
)
#: Names of averaged weights; ``key="ema"`` takes the first that is there.
EMA_CONTAINERS = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
    "average_model_state",
)
#: The same as a prefix in one flat dictionary; the first is what the tasks here write.
EMA_PREFIXES = ("ema.module.", "model_ema.module.", "ema_model.module.", "model_ema.", "ema_model.")


def read_state_dict(
    source: str | os.PathLike[str],
    *,
    key: str | None = None,
    sha256: str | None = None,
    mmap: bool = False,
) -> dict[str, Tensor]:
    """The weights of a checkpoint, under the names that they have there.

    Args:
        source: a safetensors or PyTorch file, a sharded checkpoint's index, a folder with one of
            them (a run folder as well), a URL, or ``hf://owner/name[/file][@revision]``; see
            :func:`zoo.checkpoints.sources.locate`.
        key: which dictionary of the file, nested names joined by dots, or the prefix of the wanted
            names; ``"ema"``: the averaged weights. Default: the usual containers (``state_dict``,
            ``model``, ..., see ``CONTAINERS``), never averaged weights.
        sha256: digest that the file must have.
        mmap: tensors are views of the files, which must not change while they live.

    Returns:
        name -> tensor on the CPU, in the dtype of the file.

    Raises:
        ZooError: if there is nothing, it is damaged, would run code, or holds no weights.
    """
    return open_state_dict(locate(source, sha256=sha256), key=key, mmap=mmap)[0]


def open_state_dict(
    located: Located, *, key: str | None = None, mmap: bool = False
) -> tuple[dict[str, Tensor], str]:
    """As :func:`read_state_dict`, for files that are found; also where the weights stood."""
    if located.index is not None:
        if key is not None:
            raise ZooError(
                f"{located.name} is sharded and has no parts to choose from: leave key out"
            )
        return _read_shards(located, located.index, mmap), ""
    (path,) = located.files
    content = read_file(path, mmap=mmap)
    if key is None:
        weights, place = _find(content, located.name)
    else:
        weights, place = _take(content, key, located.name)
    tensors = _tensors(weights, located.name)
    if key is None and file_format(path) != "safetensors":
        tensors = _without_averages(tensors, located.name)
    return tensors, place


def _read_shards(located: Located, index: Mapping[str, Path], mmap: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in located.files:
        shard = read_file(path, mmap=mmap)
        listed = {name for name, file in index.items() if file == path}
        odd = sorted(listed ^ shard.keys())
        if odd:
            raise ZooError(
                f"{path} and {located.name} do not belong together: {len(odd)} tensors stand in "
                f"one of them only, such as '{odd[0]}'; fetch all files from the same place"
            )
        tensors |= _tensors(shard, str(path))
    return tensors


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _find(content: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str]:
    """The weights in a checkpoint, and the path to them."""
    found = _in_containers(content)
    if found is not None:
        taken = found[1].partition(".")[0]
        others = [n for n in (*CONTAINERS, *EMA_CONTAINERS) if _has_tensors(content.get(n))]
        if others := [n for n in others if n != taken]:
            there = ", ".join(map(repr, others))
            log.info("%s: taking '%s'; it also holds %s (key=...)", name, taken, there)
        return found
    if _has_tensors(content):
        return content, ""
    parts = [str(part) for part, value in content.items() if _has_tensors(value)]
    if len(parts) == 1 and parts[0] not in EMA_CONTAINERS:
        return content[parts[0]], parts[0]
    if parts:
        raise ZooError(
            f"{name} holds weights under {', '.join(map(repr, parts))}: say which with key="
        )
    there = ", ".join(repr(str(part)) for part in list(content)[:8]) or "nothing"
    raise ZooError(f"{name} holds no weights: its entries are {there}")


def _in_containers(
    content: Mapping[str, Any], inside: tuple[int, ...] = ()
) -> tuple[Mapping[str, Any], str] | None:
    """The first of the usual containers that holds weights, itself or in a usual container.

    Args:
        content: a dictionary.
        inside: those that it stands in; one may hold itself.
    """
    inside = (*inside, id(content))
    for container in CONTAINERS:
        inner = content.get(container)
        if _has_tensors(inner):
            return inner, container  # type: ignore[return-value]
        if isinstance(inner, Mapping) and id(inner) not in inside:
            found = _in_containers(inner, inside)
            if found is not None:
                return found[0], f"{container}.{found[1]}"
    return None


def _take(content: Mapping[str, Any], key: str, name: str) -> tuple[Mapping[str, Any], str]:
    """The weights that ``key`` names, and the path to them."""
    for path in EMA_CONTAINERS if key == "ema" else (key,):
        value: Any = content
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and not _has_tensors(value) and key == "ema":
            value = value.get("module", value.get("state_dict"))
        if _has_tensors(value):
            return value, path
    try:
        flat = _find(content, name)[0]
    except ZooError:
        flat = {}
    for prefix in EMA_PREFIXES if key == "ema" else (f"{key}.",):
        named = {
            str(n).removeprefix(prefix): value
            for n, value in flat.items()
            if str(n).startswith(prefix)
        }
        if named:
            return named, prefix
    there = sorted({str(part) for part, value in content.items() if _has_tensors(value)})
    what = "averaged weights" if key == "ema" else f"weights under '{key}'"
    hint = ", ".join(map(repr, there)) if there else "one dictionary of tensors without parts"
    raise ZooError(f"{name} holds no {what}: it has {hint}")


def _without_averages(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Leave out the average that a training checkpoint of ours keeps beside the model."""
    for prefix in EMA_PREFIXES:
        averages = [n for n in weights if n.startswith(prefix)]
        if averages and any(n.startswith("model.") for n in weights):
            log.info("%s also holds averaged weights: key='ema' takes them", name)
            return {n: value for n, value in weights.items() if not n.startswith(prefix)}
    return weights


def _tensors(weights: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    others = [str(n) for n, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        log.warning("%s: no tensors and left out: %s", name, some(others))
    tensors: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout is not torch.strided or value.is_quantized:
            kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise ZooError(f"{name}: {key} is a {kind} tensor, expected a plain one: dequantise it")
        if str(key) in tensors:
            raise ZooError(f"{name} has two tensors that are both called {key}")
        tensors[str(key)] = value.detach()
    return tensors
