"""What one weights file holds: safetensors and PyTorch files, read without running code from them.

A PyTorch file is a pickle, and a pickle may name any function to be called. It is read with
``weights_only=True``, which builds tensors and plain containers only. The settings that training
scripts store beside the weights (``argparse.Namespace``, yacs, mmengine and OmegaConf objects,
paths, numpy numbers) are replaced by inert stand-ins, so that such files can be read without the
packages they came from. A file that names anything else is refused.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from zoo.checkpoints.hdf5 import read_hdf5
from zoo.errors import ZooError

#: Objects that may stand beside the weights; nothing of these modules is imported or called.
_SETTINGS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|pathlib\._local\.\w+|typing\.\w+"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|dtypes\.\w+)"
    r"|collections\.defaultdict|datetime\.\w+|yacs\.config\.CfgNode|(omegaconf|mmcv|mmengine)\.[\w.]+"
    r"|(pytorch_lightning|lightning)(\.[\w]+)*\.AttributeDict"
    r"|builtins\.(dict|list|set|slice|range|object)"
)
_MAPPINGS = re.compile(r".*\.(CfgNode|ConfigDict|AttributeDict|defaultdict|dict)")
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


class _InertObject:
    """Stands for an object of another package; keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _InertObject:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _InertMapping:
    """Stands for a dictionary class of another package; becomes an ordinary dictionary."""

    def __new__(cls, *args: object, **kwargs: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


def file_format(path: Path) -> str:
    """``"safetensors"``, ``"zip"`` or ``"pickle"`` (PyTorch, new or old), ``"hdf5"`` or ``"json"``.

    Raises:
        ZooError: if the file is empty or something else, saying what it seems to be.
    """
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
        return dict(read_hdf5(path))
    if kind == "json":
        raise ZooError(
            f"{path} is JSON, not weights: give its folder, a safetensors or PyTorch file, or an "
            "index whose name ends in .index.json"
        )
    content = _read_torch(path, kind, mmap)
    if isinstance(content, torch.Tensor) or not isinstance(content, dict):
        raise ZooError(
            f"{path} holds {type(content).__name__}, not a state dict: save `model.state_dict()`"
        )
    return content


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name of a sharded checkpoint's ``*.index.json``."""
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        names = {str(key): str(value) for key, value in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ZooError(
            f"{path} is a damaged or incomplete safetensors file of {path.stat().st_size} bytes "
            f"({error}): fetch it again"
        ) from None


def _read_safetensors(path: Path, mmap: bool) -> dict[str, Any]:
    with _open_safetensors(path) as file:
        names = list(file.keys())
        if not names:
            raise ZooError(f"{path} is a safetensors file without tensors")
        tensors = {name: file.get_tensor(name) for name in names}
        shared = json.loads((file.metadata() or {}).get("shared", "{}"))
    if not mmap:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, stored in shared.items():
        tensors[name] = tensors[stored]
    return tensors


def _read_torch(path: Path, kind: str, mmap: bool) -> Any:
    if kind == "zip":
        _check_archive(path)
    try:
        names = _globals(path, kind)
    except Exception as error:
        raise ZooError(
            f"{path} is damaged or incomplete ({_first_line(error)}): fetch it again"
        ) from None
    stand_ins: list[Any] = [
        (_InertMapping if _MAPPINGS.fullmatch(name) else _InertObject, name)
        for name in sorted(names)
        if _SETTINGS.fullmatch(name)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=mmap and kind == "zip"
            )
    except pickle.UnpicklingError as error:
        raise ZooError(_refusal(path, names, _first_line(error))) from None
    except Exception as error:
        raise ZooError(
            f"{path} is damaged, incomplete or not written by torch.save ({_first_line(error)}): "
            "fetch it again"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _refusal(path: Path, names: set[str], reason: str) -> str:
    named = re.search(r"GLOBAL (\S+)", reason)
    # A name of torch itself may be refused as well, such as a whole module that was pickled.
    foreign = sorted(
        name
        for name in names
        if not _SETTINGS.fullmatch(name)
        and (not name.startswith(("torch.", "collections.", "_codecs.")) or ".nn.modules." in name)
    )
    if not foreign and named is None:
        return f"{path} is not a file that torch.save wrote, or it is damaged ({reason})"
    culprits = ", ".join(foreign[:5]) if foreign else str(named and named[1])
    return (
        f"{path} would run code when it is loaded: it names {culprits}, and weights need tensors "
        "and plain containers only. Nothing was loaded. Ask for a safetensors file; or, if you "
        "trust its author, convert it once where that code is installed: "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), OUT)"
    )


def _check_archive(path: Path) -> None:
    """Refuse an archive that is cut, of another kind, or has changed bytes; torch.load does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.rpartition("/")[2] for entry in entries}
            if "data.pkl" not in names:
                kind = "a NumPy archive" if any(n.endswith(".npy") for n in names) else "a zip file"
                raise ZooError(f"{path} is {kind}; expected a safetensors or PyTorch file")
            if "constants.pkl" in names:
                raise ZooError(
                    f"{path} is a TorchScript program, not weights: save the state dict of "
                    "`torch.jit.load(FILE)` instead"
                )
            for entry in entries:
                # torch.save writes 0 for all of them when its checksums are switched off.
                if entry.CRC:
                    with archive.open(entry) as stored:
                        while stored.read(2**22):
                            pass
    except ZooError:
        raise
    except Exception as error:  # changed bytes can make any part of the reader fail
        raise ZooError(
            f"{path} is a damaged or incomplete PyTorch file of {path.stat().st_size} bytes "
            f"({_first_line(error)}): fetch it again"
        ) from None


def _globals(path: Path, kind: str) -> set[str]:
    """All functions and classes that a PyTorch file names, found without loading it."""
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
            entry.CRC = None  # type: ignore[assignment]  # it is checked, or there is none
            with archive.open(entry) as file:
                return set(_pickle_globals(file))
    names: set[str] = set()
    with path.open("rb") as file:
        # The old format: four pickles (magic number, protocol, system, content), then bytes.
        for _ in range(4):
            names.update(_pickle_globals(file))
            if file.peek(1)[:1] != b"\x80":
                break
    return names


def _pickle_globals(file: IO[bytes]) -> Iterator[str]:
    strings: list[str | None] = []
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            # What Python 2 called __builtin__, which is still what is written.
            yield re.sub("^__builtin__ ", "builtins ", str(argument)).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(str(part) for part in strings[-2:])
        elif isinstance(argument, str) and "UNICODE" in opcode.name:
            strings.append(argument)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(str(argument))] = strings[-1] if strings else None
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(int(str(argument))))
