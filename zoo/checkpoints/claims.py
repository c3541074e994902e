"""What a file says that it holds, compared with the bytes that it has."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import ZooError

#: No DEFLATE stream holds more than this many bytes for each of its own (RFC 1951's longest match
#: in its shortest code); gzip, zip, PNG, HDF5 and TIFF files use it.
DEFLATE_LIMIT = 1032
#: What a part of a file may ask for however small it is, in bytes.
SMALL_CLAIM = 2**16


def check_claim(
    path: Path, claimed: int, what: str, stored: int | None = None, small: int = SMALL_CLAIM
) -> None:
    """Compare what a file says it holds with what is stored of it, before memory is taken.

    Args:
        path: the file.
        claimed: bytes that reading it would take.
        what: what says so, for the message.
        stored: bytes that it has for this; by default, and at most, all of the file.
        small: what it may ask for in any case, where a format packs more densely than DEFLATE.

    Raises:
        ZooError: no compression could make so much of so little.
    """
    size = path.stat().st_size
    stored = size if stored is None else min(stored, size)
    if claimed > max(small, DEFLATE_LIMIT * stored):
        raise ZooError(
            f"{path}: {what} would take {claimed / 2**20:,.0f} MiB, but only {stored:,} bytes of "
            "it are stored: the file is damaged, or made to fill the memory"
        )
