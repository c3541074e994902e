"""Weights that Keras wrote as HDF5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError


def read_hdf5(path: Path) -> dict[str, Tensor]:
    """The arrays of an HDF5 file by their paths, in Keras' order where the file has one.

    Raises:
        ZooError: the file is damaged, or holds no arrays of numbers.
    """
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            arrays = {name: np.asarray(dataset) for name, dataset in _datasets(root)}
    except (OSError, KeyError, RuntimeError) as error:
        raise ZooError(
            f"{path} is a damaged or incomplete HDF5 file of {path.stat().st_size} bytes "
            f"({error}): fetch it again"
        ) from None
    tensors = {
        name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiu"
    }
    if not tensors:
        raise ZooError(f"{path} is an HDF5 file without arrays of numbers: it holds no weights")
    return tensors


def _datasets(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    if "layer_names" in root.attrs:
        for layer in root.attrs["layer_names"]:
            group = root[_text(layer)]
            for name in group.attrs["weight_names"]:
                yield f"{_text(layer)}/{_text(name)}", group[_text(name)]
        return
    found: list[tuple[str, h5py.Dataset]] = []
    root.visititems(
        lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None
    )
    yield from found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
