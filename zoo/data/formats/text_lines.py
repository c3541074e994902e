"""Lines of a text file that may be larger than the memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.formats.files import reading
from zoo.errors import ZooError


class TextLines:
    """The lines of a file, of which only the places are kept; empty ones are left out.

    Args:
        path: UTF-8 text.
        header: the columns that the first line must name, a tab between them; None: there is no
            such line.

    Raises:
        ZooError: the file cannot be read, or has another header.
    """

    def __init__(self, path: Path, header: Sequence[str] | None = None) -> None:
        self.path = path
        places, place = [], 0
        with reading(path, "a text file"), path.open("rb") as file:
            for line in file:
                if line.strip():
                    places.append(place)
                place += len(line)
            self._places = np.array(places, np.int64)
            if header is not None:
                file.seek(0)
                found = file.readline().decode().strip().split("\t")
                if found != list(header):
                    raise ZooError(
                        f"{path} begins with the columns {', '.join(found)[:60]}, expected "
                        f"{', '.join(header)}"
                    )
                self._places = self._places[1:]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> str:
        place = self._places[index]
        with reading(self.path, "UTF-8 text"), self.path.open("rb") as file:
            file.seek(place)
            return file.readline().decode().rstrip("\r\n")
