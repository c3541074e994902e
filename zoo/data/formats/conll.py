"""Sentences in CoNLL's layout: a token a line with its columns, an empty line behind a sentence."""

from __future__ import annotations

from pathlib import Path

from zoo.data.formats.text_rows import Row, text_lines
from zoo.errors import ZooError

#: Endings of files of this layout, lower case.
CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt")


def read_conll(path: Path, tokens: str, tags: str) -> list[Row]:
    """The sentences of a file: the first column is the token, the last one its tag.

    Lines that begin with ``-DOCSTART-`` are left out. What parts the columns is a tab where the
    line has one, and spaces otherwise.

    Args:
        path: UTF-8 text.
        tokens, tags: names for the two columns of the rows, each a list of texts.

    Raises:
        ZooError: the file cannot be read, or a line has another number of columns than the first,
            or only one.
    """
    rows: list[Row] = []
    columns = 0
    fresh = True
    for number, line in text_lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            fresh = True
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        columns = columns or len(cells)
        if len(cells) != columns or len(cells) < 2 or not all(cell.strip() for cell in cells):
            wanted = f"{columns} columns" if columns > 1 else "a token and its tag"
            raise ZooError(f"{path}, line {number}: {line[:40]!r}, expected {wanted}")
        if fresh:
            rows.append(Row({tokens: [], tags: []}, f"{path}, line {number}"))
            fresh = False
        rows[-1][tokens].append(cells[0])
        rows[-1][tags].append(cells[-1])
    return rows


def write_conll(path: Path, sentences: list[list[tuple[str, str]]]) -> None:
    """Write sentences of tokens and tags, so that :func:`read_conll` reads them."""
    written = ("".join(f"{token} {tag}\n" for token, tag in sentence) for sentence in sentences)
    path.write_text("\n".join(written))
