"""Where models that were trained here are kept, by name, and how they get there.

Whatever is kept is made aside and put in place whole. Nothing that is kept is replaced, so who
reads it reads one and the same thing however many processes make it. Of two that make the same at
once the first wins.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

from zoo.atomic import part_folder
from zoo.show import say


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
        with part_folder("ZOO_CACHE", folder) as part:
            make(part)
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
    with part_folder("model.init_args.export", wanted) as part:
        make(part)
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
