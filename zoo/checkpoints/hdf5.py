"""HDF5 files, read without leaving the file and without believing its sizes; Keras' weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.claims import check_claim
from zoo.errors import ZooError

#: Filters that HDF5 and h5py bring along; others are plugins, code from elsewhere.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scale-offset"}
_FILTERS[32000] = "lzf"
_LINKS = 32


@contextmanager
def open_hdf5(path: Path, expected: str = "an HDF5 file") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        ZooError: it is missing or damaged, also while it is read.
    """
    if not path.is_file():
        raise ZooError(f"{path} is missing, expected {expected}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ZooError:
        raise
    except Exception as error:  # damage shows as almost any of Python's errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ZooError(
            f"{path} is a damaged or incomplete HDF5 file of {path.stat().st_size} bytes "
            f"({reason}), expected {expected}: fetch it again"
        ) from None


def member(group: h5py.Group, name: str, links: int = _LINKS) -> Any:
    """What has a name in a group, if it stands in the same file.

    Raises:
        ZooError: there is nothing, or a link to another file.
    """
    for part in filter(None, name.split("/")):
        # "in" would follow a link to another file
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise ZooError(f"{group.file.filename} holds no {name}")
        if isinstance(link, h5py.ExternalLink) or links == 0:
            raise ZooError(
                f"{group.file.filename}: {name} points to another file, which is not read"
            )
        if isinstance(link, h5py.SoftLink):
            start = group.file if link.path.startswith("/") else group
            group = member(start, link.path, links - 1)
        else:
            group = group[part]
    return group


def read_array(dataset: Any, part: Any = ()) -> np.ndarray:
    """Numbers of an array, or ``part`` of it, in this machine's byte order.

    Raises:
        ZooError: it is no array of numbers, stands in other files, needs a plugin, or says that it
            is far larger than what is stored of it.
    """
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
        raise ZooError(f"{_where(dataset)} is no array of numbers")
    check_array(dataset)
    values = np.asarray(dataset[part])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def check_array(dataset: h5py.Dataset) -> None:
    """Raise :class:`ZooError` if reading an array would leave its file or fill the memory."""
    if dataset.external or dataset.is_virtual:
        raise ZooError(f"{_where(dataset)} is stored in other files, which are not read")
    settings = dataset.id.get_create_plist()
    for i in range(settings.get_nfilters()):
        number, _, _, name = settings.get_filter(i)
        if number not in _FILTERS:
            called = name.decode(errors="replace") or number
            raise ZooError(
                f"{_where(dataset)} is packed by {called}, a plugin of HDF5: store it with gzip"
            )
    stored = dataset.id.get_storage_size()
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    claimed = max(dataset.size * dataset.dtype.itemsize, chunk)
    check_claim(Path(dataset.file.filename), claimed, dataset.name, stored)


def read_hdf5(path: Path) -> dict[str, Tensor]:
    """The arrays of an HDF5 file by their paths, in Keras' order where the file has one.

    Raises:
        ZooError: the file is damaged, or holds no arrays of numbers, or see :func:`read_array`.
    """
    with open_hdf5(path) as file:
        nested = file.get("model_weights", getlink=True) is not None
        root = member(file, "model_weights") if nested else file
        tensors = {
            name: torch.from_numpy(read_array(dataset))
            for name, dataset in _datasets(root)
            if dataset.dtype.kind in "fiu"
        }
    if not tensors:
        raise ZooError(f"{path} is an HDF5 file without arrays of numbers: it holds no weights")
    return tensors


def _datasets(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    if "layer_names" in root.attrs:
        for layer in root.attrs["layer_names"]:
            group = member(root, _text(layer))
            for name in group.attrs["weight_names"]:
                yield f"{_text(layer)}/{_text(name)}", member(group, _text(name))
        return
    found: list[tuple[str, h5py.Dataset]] = []
    root.visititems(
        lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None
    )
    yield from found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _where(item: Any) -> str:
    return f"{item.file.filename}: {item.name}"
