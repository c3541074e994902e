"""What all readers of files share: their order, their pairs, and how a broken one is said.

Order and number of a file come from its name alone: ``2.png`` stands before ``10.png``, and a frame
keeps its number where others are missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import ZooError

_NUMBER = re.compile(r"([0-9]+)")


def natural_key(path: Path | str) -> tuple:
    """Sorting key by which numbers in names count as numbers, folder by folder."""
    return tuple(
        (tuple(int(p) if i % 2 else p for i, p in enumerate(_NUMBER.split(part))), part)
        for part in Path(path).parts
    )


def natural_sorted(paths: Iterable[Path]) -> list[Path]:
    """Paths by :func:`natural_key`, without hidden files (``._1.png`` of a Mac)."""
    return sorted((path for path in paths if path.name[:1] != "."), key=natural_key)


def number_in(name: str) -> int | None:
    """The last number in a file's name without ending, which counts frames and slices."""
    found = _NUMBER.findall(Path(name).stem)
    return int(found[-1]) if found else None


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Name without ending -> file, in natural order.

    Raises:
        ZooError: two files differ in their ending alone.
    """
    found: dict[str, Path] = {}
    for path in natural_sorted(paths):
        if path.stem in found:
            raise ZooError(
                f"{path} and {found[path.stem].name} have one name, expected one file of each name"
            )
        found[path.stem] = path
    return found


def numbered(paths: Iterable[Path]) -> dict[int, Path]:
    """:func:`number_in` its name -> file, in order; files without a number are left out.

    Raises:
        ZooError: two files have one number.
    """
    found: dict[int, Path] = {}
    for path in natural_sorted(paths):
        number = number_in(path.name)
        if number in found:
            raise ZooError(
                f"{path} and {found[number].name} both have the number {number}, expected one file "
                "of each"
            )
        if number is not None:
            found[number] = path
    return dict(sorted(found.items()))


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Say in one line which file is missing or broken, whatever library reads it.

    Raises:
        ZooError: instead of the library's own error.
    """
    try:
        yield
    except ZooError:
        raise
    except FileNotFoundError:
        raise ZooError(f"{path} is missing, expected {expected}") from None
    except Exception as error:  # every format's library has its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ZooError(f"{path}: cannot be read ({reason[0]}), expected {expected}") from error
