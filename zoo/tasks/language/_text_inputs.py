"""Lines of text as what a task predicts: of files, of folders, of standard input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.data.formats.files import natural_sorted
from zoo.data.formats.text_rows import STANDARD_INPUT, text_lines
from zoo.errors import ZooError


class TextInput(NamedTuple):
    """A line.

    Attributes:
        path: of its file; ``-`` is standard input.
        line: its number, from 1 on.
        text: what it says.
    """

    path: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        """File and line, for messages."""
        name = "standard input" if self.path == STANDARD_INPUT else str(self.path)
        return f"{name}, line {self.line}"


def find_lines(sources: Sequence[Path]) -> list[TextInput]:
    """The lines of text files, of the ``.txt`` and ``.tsv`` files of folders, and of ``-``.

    Raises:
        ZooError: a file is missing or no UTF-8, or there is nothing to read.
    """
    found = [TextInput(path, *line) for path in _files(sources) for line in text_lines(path)]
    if not found:
        raise ZooError(f"{', '.join(map(str, sources))}: no line of text to predict")
    return found


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        if not source.is_dir():
            yield source
            continue
        yield from natural_sorted(
            path for path in source.rglob("*") if path.suffix.lower() in (".txt", ".tsv")
        )


def not_empty(source: TextInput) -> str:
    """The text of a line.

    Raises:
        ZooError: there is none.
    """
    if not source.text.strip():
        raise ZooError(f"{source.place} is empty, expected a text")
    return source.text
