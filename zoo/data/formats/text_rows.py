"""Rows of text: JSON lines, CSV, TSV, plain lines; what is wrong is said with its file and line."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.data.formats.files import reading
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: Endings of tables of text, lower case.
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
#: What stands for standard input among the files of a command.
STANDARD_INPUT = Path("-")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1 on, and text of each line of a UTF-8 file, or of standard input.

    Raises:
        ZooError: the file is missing, or a line is no UTF-8, with its number.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    with reading(path, "a text file"):
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
        try:
            yield number, line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ZooError(
                f"{name}, line {number}: byte {error.start + 1} is no UTF-8, expected a text in "
                "UTF-8"
            ) from None


class Row(dict[str, Any]):
    """A row of a table by column.

    Attributes:
        place: file and line, for messages.
    """

    def __init__(self, values: dict[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place

    def text(self, column: str) -> str:
        """The text of a column.

        Raises:
            ZooError: the row lacks it, or it is no text, or empty.
        """
        value = self.get(column)
        if value is None:
            known = ", ".join(str(name) for name in self)
            raise ZooError(f"{self.place}: no column {column!r}, the row has {known}")
        if not isinstance(value, str):
            raise ZooError(f"{self.place}: {column} is {value!r}, expected a text")
        if not value.strip():
            raise ZooError(f"{self.place}: {column} is empty, expected a text")
        return value


def read_rows(
    path: Path, columns: Sequence[str] | None = None, skip_broken: bool = False
) -> list[Row]:
    """The rows of a table; empty lines are left out.

    Args:
        path: ``.jsonl`` or ``.json`` (an object a line), ``.csv`` (quoted as spreadsheets do) or
            ``.tsv`` (no quoting, as GLUE has it).
        columns: of a table without a header; None: the first line names them.
        skip_broken: leave rows out that have another number of cells, and say how many, as a
            published file is known to have.

    Raises:
        ZooError: it cannot be read, or a row has more or fewer cells than there are columns.
    """
    ending = path.suffix.lower()
    if ending not in TABLE_SUFFIXES:
        raise ZooError(f"{path}: expected a table that ends in {' '.join(TABLE_SUFFIXES)}")
    if ending in (".jsonl", ".json"):
        return [_object(line, f"{path}, line {n}") for n, line in text_lines(path) if line.strip()]
    if ending == ".csv":
        cells = _quoted(path)
    else:
        cells = ((n, line.split("\t")) for n, line in text_lines(path) if line.strip())
    rows: list[Row] = []
    broken = 0
    for number, values in cells:
        if columns is None:
            columns = values
        elif len(values) != len(columns):
            broken += 1
            if skip_broken:
                continue
            raise ZooError(
                f"{path}, line {number}: {len(values)} cells, expected {len(columns)}: "
                + ", ".join(columns)[:120]
            )
        else:
            rows.append(Row(dict(zip(columns, values, strict=True)), f"{path}, line {number}"))
    if broken:
        log.warning("%s: %d rows with other than %d cells left out", path, broken, len(columns))
    return rows


def _object(line: str, place: str) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ZooError(f"{place}: no JSON ({error.msg}), expected an object a line") from None
    if not isinstance(values, dict):
        raise ZooError(f"{place}: {line[:40]!r}, expected an object of JSON")
    return Row(values, place)


def _quoted(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the last line, and cells, of each row of a CSV file."""
    reader = csv.reader(line + "\n" for _, line in text_lines(path))
    with reading(path, "a CSV file"):
        for cells in reader:
            if cells:
                yield reader.line_num, cells
