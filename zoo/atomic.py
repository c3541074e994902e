"""Files and folders that are there whole or not at all, whatever kills the process that makes them.

What is made stands beside its place under a hidden name that ends in ``.part`` until it is renamed.
The name has the process in it, so that the next one can tell what a killed one has left.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import ZooError

_number = itertools.count()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any time there is the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def part_folder(option: str, path: Path) -> Iterator[Path]:
    """An empty folder to write into, beside where :func:`place` will put it; gone at the end.

    Raises:
        ZooError: it cannot be made; the message names the ``option`` that asked for it.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        part.mkdir()
    except OSError as error:
        raise ZooError(
            f"{option}: the folder {path} cannot be made: {error.strerror}; choose another"
        ) from None
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def place(part: Path, path: Path) -> Path:
    """Put what was made at ``path``; if another process was faster, at ``path-2`` or further."""
    for number in itertools.count(2):
        if not path.exists():  # an empty folder would be replaced
            try:
                return part.rename(path)
            except OSError:
                if not path.exists():
                    raise
        path = path.with_name(f"{path.name.removesuffix(f'-{number - 1}')}-{number}")
    raise AssertionError


def is_full(error: OSError) -> bool:
    """Whether the disk is full, or what a user may have of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def part_of(path: Path) -> Path:
    """Where this process makes what will stand at ``path``."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.{next(_number)}.part")


def sweep(folder: Path) -> None:
    """Remove from a folder what processes of this machine have left that are no more."""
    for part in folder.glob(f".*.{_host()}-*.*.part"):
        process = part.name.split(".")[-3].rpartition("-")[2]
        if not process.isdigit() or _runs(int(process)):
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _host() -> str:
    return platform.node().partition(".")[0]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
