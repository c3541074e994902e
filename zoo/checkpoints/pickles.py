"""PyTorch's files, read without running code from them and without believing their sizes.

Such a file is a pickle, and a pickle may name any function to be called. It is read with
``weights_only=True``, which builds tensors and plain containers only. The settings that training
scripts store beside the weights (``argparse.Namespace``, yacs, mmengine and OmegaConf objects,
paths, numpy numbers) are replaced by inert stand-ins, so that such files can be read without the
packages they came from. A file that names anything else is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from zoo.checkpoints.claims import check_claim
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
_INTS = frozenset(["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"])


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


def read_torch(path: Path, kind: str, mmap: bool) -> Any:
    """What a PyTorch file holds, tensors on the CPU.

    Args:
        path: the file.
        kind: ``"zip"``, or ``"pickle"`` for what PyTorch wrote before 1.6.
        mmap: see :func:`zoo.checkpoints.formats.read_file`.

    Raises:
        ZooError: it is damaged, incomplete, claims more than it has, or would run code.
    """
    if kind == "zip":
        _check_archive(path)
    try:
        found = _scan(path, kind)
    except Exception as error:
        raise ZooError(
            f"{path} is damaged or incomplete ({_first_line(error)}): fetch it again"
        ) from None
    if sum(found.elements.values()) > path.stat().st_size:
        raise ZooError(
            f"{path} claims {sum(found.elements.values()):,} numbers in {path.stat().st_size:,} "
            "bytes: it is damaged, or made to fill the memory"
        )
    names = found.names
    stand_ins: list[Any] = [
        (_InertMapping if _MAPPINGS.fullmatch(name) else _InertObject, name)
        for name in sorted(names)
        if _SETTINGS.fullmatch(name)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors and newer pickles
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
            if len({entry.filename for entry in entries}) < len(entries):
                raise ZooError(f"{path} is damaged: its archive has two entries of one name")
            if "data.pkl" not in names:
                kind = "a NumPy archive" if any(n.endswith(".npy") for n in names) else "a zip file"
                raise ZooError(f"{path} is {kind}; expected a safetensors or PyTorch file")
            if "constants.pkl" in names:
                raise ZooError(
                    f"{path} is a TorchScript program, not weights: save the state dict of "
                    "`torch.jit.load(FILE)` instead"
                )
            if sum(entry.compress_size for entry in entries) > path.stat().st_size:
                raise ZooError(f"{path} is damaged: its archive's entries overlap")
            for entry in entries:
                check_claim(path, entry.file_size, entry.filename, entry.compress_size)
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


@dataclass
class _Scan:
    """What a pickle says before it is loaded.

    Attributes:
        names: of all functions and classes.
        elements: of each storage of the old format, whose bytes follow the pickle.
    """

    names: set[str] = field(default_factory=set)
    elements: dict[str | None, int] = field(default_factory=dict)


def _scan(path: Path, kind: str) -> _Scan:
    found = _Scan()
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            entry = next(
                e for e in archive.infolist() if e.filename.rpartition("/")[2] == "data.pkl"
            )
            entry.CRC = None  # type: ignore[assignment]  # it is checked, or there is none
            with archive.open(entry) as file:
                _scan_pickle(file, found)
        found.elements.clear()  # torch compares them with the archive's entries
        return found
    with path.open("rb") as file:
        # The old format: four pickles (magic number, protocol, system, content), then bytes.
        for _ in range(4):
            _scan_pickle(file, found)
            if file.peek(1)[:1] != b"\x80":
                break
    return found


def _scan_pickle(file: IO[bytes], found: _Scan) -> None:
    """Follow strings and whole numbers, also those that are remembered and called up again."""
    values: list[str | int | None] = []
    memo: dict[int, str | int | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            # What Python 2 called __builtin__, which is still what is written.
            name = re.sub("^__builtin__ ", "builtins ", str(argument)).replace(" ", ".")
            found.names.add(name)
        elif opcode.name == "STACK_GLOBAL":
            named = [value for value in values if isinstance(value, str)]
            found.names.add(".".join(named[-2:]))
        elif opcode.name == "BINPERSID":  # ("storage", type, key, location, elements, view)
            key = next((v for v in reversed(values[:-2]) if isinstance(v, str)), None)
            count = next((v for v in reversed(values) if isinstance(v, int)), 0)
            found.elements[key] = max(count, found.elements.get(key, 0))
        elif opcode.name in _INTS or (isinstance(argument, str) and "UNICODE" in opcode.name):
            values.append(argument)  # type: ignore[arg-type]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = values[-1] if values else None
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(str(argument))] = values[-1] if values else None
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            values.append(memo.get(int(str(argument))))
