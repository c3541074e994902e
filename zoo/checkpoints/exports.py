"""Where models that were trained here are kept, by name, and how they get there.

Whatever is kept is made aside, in a folder beside its place, and put there whole: nobody ever sees
half of it. Nothing that is kept is replaced, so who reads it reads one and the same thing however
many processes make it. Of two that make the same at once the first wins.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import ZooError
from zoo.show import say

#: What a process that was killed left aside is removed when it is so old, in seconds.
_STALE = 86_400.0


def cache_folder() -> Path:
    """Where models trained here are kept: ``$ZOO_CACHE``, or ``zoo`` in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ZOO_CACHE", base / "zoo"))


def trained_folder(name: str | Path) -> Path:
    """Folder of what a recipe exported under ``name``, or of a part of it (``name/target``)."""
    return cache_folder() / "models" / name


def put_in_place(folder: Path, make: Callable[[Path], object]) -> Path:
    """Keep what ``make`` writes in ``folder``, unless something is kept there.

    Args:
        folder: where it is to stand.
        make: writes into the empty folder that it is given.

    Returns:
        ``folder``; what is in it may be of another process that was faster.
    """
    if not folder.is_dir():
        with _aside(folder, make) as part:
            _rename(part, folder)
    return folder


def export(name: str | Path, make: Callable[[Path], object]) -> Path:
    """Keep what a run made under a name, which stays that of its first owner.

    The same content is not kept twice. Another content under a name that is taken gets the name
    with a number behind it (``-2``, ``-3``, ...), and one line says so.

    Args:
        name: of :func:`trained_folder`, or a path, with a separator in it.
        make: writes into the empty folder that it is given.

    Returns:
        the folder.
    """
    wanted = Path(name) if os.sep in str(name) else trained_folder(name)
    number, folder = 1, wanted
    with _aside(wanted, make) as part:
        while not _rename(part, folder) and not _same(part, folder):
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
    if folder != wanted:
        kept_as = folder if os.sep in str(name) else folder.name
        say(
            f"exported as {kept_as}: {wanted} holds what another run exported. Name the new one "
            "where you use it, or delete that folder before the next export"
        )
    return folder


@contextmanager
def _aside(folder: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A folder beside ``folder`` with what ``make`` wrote; removed in the end, if it is still
    there."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        _sweep(folder)
        make(part)
        yield part
    except OSError as error:
        raise ZooError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _rename(part: Path, folder: Path) -> bool:
    """Move a folder to its place; False if something is there."""
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [
        sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
        for root in (one, other)
    ]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )


def _sweep(folder: Path) -> None:
    """Remove what killed processes left aside of ``folder``."""
    for part in folder.parent.glob(f".{folder.name}.*.part"):
        if time.time() - part.stat().st_mtime > _STALE:
            shutil.rmtree(part, ignore_errors=True)
