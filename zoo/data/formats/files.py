"""What all readers of files share: their order, what they claim to hold, how a broken one is said.

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
#: No DEFLATE stream holds more than this many bytes for each of its own (RFC 1951's longest match
#: in its shortest code), which gzip, zip, PNG, HDF5 and TIFF files use.
DEFLATE_LIMIT = 1032
#: What a file may ask for however small it is, in bytes.
SMALL_CLAIM = 2**20


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


def check_claim(path: Path, claimed: int, what: str, stored: int | None = None) -> None:
    """Compare what a file says it holds with the bytes that it has, before memory is taken.

    Args:
        path: the file.
        claimed: bytes that reading it would take.
        what: what says so, for the message.
        stored: bytes that it has for this; by default all of the file.

    Raises:
        ZooError: no compression could make so much of it.
    """
    stored = path.stat().st_size if stored is None else stored
    if claimed > max(SMALL_CLAIM, DEFLATE_LIMIT * stored):
        raise ZooError(
            f"{path}: {what} would take {claimed / 2**20:,.0f} MiB, but the file has only "
            f"{stored:,} bytes for it: it is damaged, or made to fill the memory"
        )


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
