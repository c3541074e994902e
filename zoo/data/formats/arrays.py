"""NumPy's and Matlab's files: their headers are compared with the bytes behind them first."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from scipy.io import loadmat, whosmat

from zoo.checkpoints.claims import check_claim
from zoo.data.formats.files import reading
from zoo.errors import ZooError


def read_npy(path: Path, expected: str) -> np.ndarray:
    """The numbers of an ``.npy`` file.

    Args:
        path: the file.
        expected: what messages say it should be.

    Raises:
        ZooError: it is missing, damaged, holds Python objects, or less than it says.
    """
    with reading(path, expected), path.open("rb") as file:
        _check_header(path, file, path.stat().st_size, expected)
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)


def read_npz(path: Path, names: Sequence[str], expected: str) -> list[np.ndarray]:
    """Arrays of an ``.npz`` file by name; see :func:`read_npy`."""
    arrays = []
    with reading(path, expected), zipfile.ZipFile(path) as archive:
        for name in names:
            if f"{name}.npy" not in archive.namelist():
                raise ZooError(f"{path} holds no {name}, expected {expected}")
            entry = archive.getinfo(f"{name}.npy")
            check_claim(path, entry.file_size, name, entry.compress_size)
            with archive.open(entry) as file:
                _check_header(path, file, entry.file_size, expected)
            with archive.open(entry) as file:
                arrays.append(npy.read_array(file, allow_pickle=False))
    return arrays


def read_mat(path: Path, name: str, expected: str, simplify: bool = False) -> Any:
    """A variable of a Matlab file up to version 7.

    Args:
        path: the file.
        name: of the variable.
        expected: what messages say it should be.
        simplify: structs become dictionaries, and arrays of one element that element.

    Raises:
        ZooError: it is missing, damaged, of another version, or lacks the variable.
    """
    with reading(path, expected):
        sizes = {variable: shape for variable, shape, _ in whosmat(path)}
        if name not in sizes:
            raise ZooError(f"{path} holds no {name}, expected {expected}")
        check_claim(path, 8 * math.prod(sizes[name]), name)
        return loadmat(path, simplify_cells=simplify, variable_names=[name])[name]


def _check_header(path: Path, file: IO[bytes], size: int, expected: str) -> None:
    """Raise :class:`ZooError` if an array does not fit into the ``size`` bytes of its file."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "biuf":
        raise ZooError(f"{path}: an array of {dtype}, expected numbers: {expected}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise ZooError(
            f"{path}: an array of {' x '.join(map(str, shape))} would take "
            f"{claimed / 2**20:,.1f} MiB, but there are {size:,} bytes, expected {expected}"
        )
