"""What one weights file holds: safetensors, PyTorch or HDF5; none of them runs code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from zoo.checkpoints.claims import check_claim
from zoo.checkpoints.pickles import read_torch
from zoo.errors import ZooError

_MAGIC = {
    b"PK\x03\x04": "zip",
    b"\x80": "pickle",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "hdf5",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"\x93NUMPY": "a NumPy array",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive: unpack it first",
}


def file_format(path: Path) -> str:
    """``"safetensors"``, ``"zip"`` or ``"pickle"`` (PyTorch, new or old), ``"hdf5"`` or ``"json"``.

    Raises:
        ZooError: if the file is empty or something else, saying what it seems to be.
    """
    if path.exists() and not path.is_file():
        raise ZooError(f"{path} is no file: expected a safetensors or PyTorch file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror}") from None
    text = head.lstrip().lower()
    if not head:
        raise ZooError(f"{path} is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ZooError(
            f"{path} is a Git LFS pointer of {size} bytes, not the weights: run `git lfs pull` in "
            "its repository, or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ZooError(
            f"{path} is a web page, not weights: the address probably led to an error or login "
            "page; open it in a browser and take the link of the file itself"
        )
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header < 100 * 2**20:
        return "safetensors"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            if name in ("zip", "pickle", "hdf5"):
                return name
            raise ZooError(f"{path} is {name}; expected a safetensors or PyTorch file")
    if text.startswith(b"{"):
        return "json"
    raise ZooError(
        f"{path} ({size} bytes) is not a checkpoint: it is neither safetensors nor a file that "
        "torch.save wrote; if it should be one, it is damaged: fetch it again"
    )


def read_file(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What a safetensors, PyTorch or HDF5 (Keras) file holds, tensors on the CPU.

    Args:
        path: the file.
        mmap: tensors are views of the file and take no memory until they are read; the file must
            not change while they live.

    Raises:
        ZooError: if it is damaged, incomplete, not a checkpoint, or would run code.
    """
    kind = file_format(path)
    if kind == "safetensors":
        return _read_safetensors(path, mmap)
    if kind == "hdf5":
        from zoo.checkpoints.hdf5 import read_hdf5  # h5py takes its time

        return dict(read_hdf5(path))
    if kind == "json":
        raise ZooError(
            f"{path} is JSON, not weights: give its folder, a safetensors or PyTorch file, or an "
            "index whose name ends in .index.json"
        )
    content = read_torch(path, kind, mmap)
    if isinstance(content, torch.Tensor) or not isinstance(content, dict):
        raise ZooError(
            f"{path} holds {type(content).__name__}, not a state dict: save `model.state_dict()`"
        )
    _check_tensors(path, content)
    return content


def _check_tensors(path: Path, content: Any) -> None:
    """Raise :class:`ZooError` if a tensor in nested containers would grow far beyond the file.

    A view that repeats its numbers may have any size; a copy of it would fill the memory.
    """
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided:
                check_claim(path, value.numel() * value.element_size(), "a tensor")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name of a sharded checkpoint's ``*.index.json``."""
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        names = {str(key): str(value) for key, value in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ZooError(
            f'{path} is not an index of a sharded checkpoint: expected JSON with a "weight_map" '
            f"from tensor names to file names ({type(error).__name__}: {error})"
        ) from None
    for name in names.values():
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ZooError(f"{path} points to '{name}', outside of its own folder: it is not read")
    if not names:
        raise ZooError(f"{path} lists no tensors: fetch it again")
    return names


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text fields in the header of a safetensors file."""
    with _open_safetensors(Path(path)) as file:
        return dict(file.metadata() or {})


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except ZooError:
        raise
    except FileNotFoundError:
        raise ZooError(f"{path} is missing, expected a safetensors file") from None
    except Exception as error:  # the library's own, and torch's for types and sizes it has not
        raise ZooError(
            f"{path} is a damaged or incomplete safetensors file of {path.stat().st_size} bytes "
            f"({str(error).partition(chr(10))[0][:200]}): fetch it again"
        ) from None


def _read_safetensors(path: Path, mmap: bool) -> dict[str, Any]:
    with _open_safetensors(path) as file:
        names = list(file.keys())
        if not names:
            raise ZooError(f"{path} is a safetensors file without tensors")
        shared = _shared(path, (file.metadata() or {}).get("shared", "{}"), names)
        tensors = {name: file.get_tensor(name) for name in names}
        if not mmap:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors | {name: tensors[stored] for name, stored in shared.items()}


def _shared(path: Path, text: str, names: Sequence[str]) -> dict[str, str]:
    """Other names of tensors that are stored once, see :mod:`zoo.checkpoints.saving`."""
    try:
        shared = json.loads(text)
        fits = isinstance(shared, dict) and all(
            isinstance(stored, str) and stored in names and name not in names
            for name, stored in shared.items()
        )
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        raise ZooError(
            f"{path}: the header's field 'shared' is {text[:60]!r}, expected JSON with other names "
            "of the tensors in the file"
        )
    return shared
