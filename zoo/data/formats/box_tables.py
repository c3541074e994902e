"""Tables of boxes, a row each: MOT Challenge's bare numbers, or CSV and TSV files with a header."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.formats.files import number_in
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: Columns of MOT Challenge's files, and of DiffMOT's with one file a frame, by their place.
MOT_COLUMNS = ("frame", "number", "left", "top", "width", "height", "score", "kind", "visible")
FRAME_FILE_COLUMNS = ("number", "left", "top", "width", "height", "score")
#: What headers call a column, without "bbox", "bb" or "box" before it and in letters and digits.
_NAMES = {
    "frame": "frame frameid frameno framenumber frameidx frameindex framenum fn image imageid "
    "imagename img imgid file filename",
    "number": "id trackid objectid objid personid identity number tid",
    "left": "left x x1 xmin x0 l xtopleft",
    "top": "top y y1 ymin y0 t ytopleft",
    "right": "right x2 xmax r xbottomright",
    "bottom": "bottom y2 ymax b ybottomright",
    "centre_x": "cx xc xcenter centerx xcentre centrex",
    "centre_y": "cy yc ycenter centery ycentre centrey",
    "width": "width w",
    "height": "height h",
    "score": "score conf confidence prob probability detscore",
}
_CALLED = {name: column for column, names in _NAMES.items() for name in names.split()}
_CORNERS, _CENTRE = ("right", "bottom"), ("centre_x", "centre_y")


class BoxTable(NamedTuple):
    """Rows of a table, in its order.

    Attributes:
        frames: as the table counts them, int64 [N].
        boxes: (left, top, width, height) in pixels [N, 4].
        columns: the other columns that it has, of ``number``, ``score``, ``kind`` and ``visible``,
            [N] each.
    """

    frames: np.ndarray
    boxes: np.ndarray
    columns: Mapping[str, np.ndarray]

    def column(self, name: str, default: float) -> np.ndarray:
        """A column, or everywhere the same where the table has none."""
        return self.columns.get(name, np.full(len(self.frames), float(default)))


def read_boxes(
    path: Path, columns: Sequence[str] = MOT_COLUMNS, least: int = 6, expected: str = ""
) -> BoxTable:
    """Read a table of boxes.

    With a header, columns go by their names (:data:`_NAMES`) in any order: left, top, width and
    height; or left, top, right and bottom; or centre, width and height. Frames may be named by
    their pictures. Fields are separated by commas, tabs, semicolons or blanks.

    Args:
        path: the file; an empty one has no rows.
        columns: names of the columns of a file without header.
        least: how many of them there must be.
        expected: what messages say of a file that is missing.

    Raises:
        ZooError: it is missing or no such table; a box is not finite, has a negative side, or all
            of them are given as shares of a picture.
    """
    rows = _Rows(path, expected)
    if rows.header is None and not rows.lines:
        return BoxTable(np.zeros(0, np.int64), np.zeros((0, 4)), {})
    if rows.header is None:
        places = {name: i for i, name in enumerate(columns[: len(rows.fields(0))])}
        if len(places) < least:
            raise ZooError(
                f"{path}: rows of {len(places)} numbers, expected {least} or more: "
                + ", ".join(columns[: max(least, 7)])
            )
    else:
        places = _named_places(path, rows.header, "frame" in columns)
    content = {name: rows.numbers(place, name) for name, place in places.items()}
    boxes = _boxes(path, content)
    kept = _with_extent(rows, boxes)
    frames = rows.whole(content["frame"]) if "frame" in content else np.zeros(len(boxes), np.int64)
    others = {n: v for n, v in content.items() if n in ("number", "score", "kind", "visible")}
    for name, values in others.items():
        rows.check_finite(values, name)
    return BoxTable(frames[kept], boxes[kept], {n: v[kept] for n, v in others.items()})


class _Rows:
    """The lines of a file, comments and empty ones left out.

    Attributes:
        header: fields of the first line, if none of them is a number.
        lines: number and text of each other line.
    """

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ZooError(
                f"{path} is missing, expected {expected or 'a table of boxes'}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"{path}: expected rows of numbers, a text file ({error})") from error
        lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1)]
        self.lines = [(number, line) for number, line in lines if line and line[0] != "#"]
        self.mark, self.header = None, None
        comment = next((line[1:] for _, line in lines if line[:1] == "#"), "")
        first = self.lines[0][1] if self.lines else ""
        for line, least in ((comment, 4), (first, 0)):
            self.mark = next((mark for mark in "\t;," if mark in line), None)
            names = self._split(line)
            known = sum(_plain(name) in _CALLED for name in names)
            if names and not any(map(_is_number, names)) and known >= least:
                self.header = names
                break
        if self.header is not None:
            self.lines = [(n, text) for n, text in self.lines if text != line]
        if self.mark in ("\t", ";") and "." not in text:  # as German spreadsheets write numbers
            self.lines = [(n, line.replace(",", ".")) for n, line in self.lines]

    def _split(self, line: str) -> list[str]:
        if self.mark is None:
            return line.split()
        try:
            return [field.strip() for field in next(csv.reader([line], delimiter=self.mark), [])]
        except csv.Error as error:
            raise ZooError(f"{self.path}: expected rows of numbers ({error})") from error

    def fields(self, row: int) -> list[str]:
        """Texts of a row."""
        return self._split(self.lines[row][1])

    def numbers(self, place: int, name: str) -> np.ndarray:
        """A column, float64 [N]; a picture's name counts as the number in it where frames are."""
        texts = [line for _, line in self.lines]
        if not texts:
            return np.zeros(0)
        try:
            return np.loadtxt(
                texts, delimiter=self.mark, usecols=[place], ndmin=1, comments=None, quotechar='"'
            )
        except ValueError:
            pass  # the slow way finds the line
        values = []
        for row, (number, _) in enumerate(self.lines):
            fields = self.fields(row)
            if place >= len(fields):
                raise ZooError(
                    f"{self.path}, line {number}: {len(fields)} fields, expected {place + 1} or "
                    "more as in the first line"
                )
            value = float(fields[place]) if _is_number(fields[place]) else None
            if value is None and name == "frame":
                value = number_in(fields[place])
            if value is None:
                raise ZooError(
                    f"{self.path}, line {number}: {fields[place][:80]!r}, expected a number: rows "
                    "of numbers with commas between them, or a header that names the columns"
                )
            values.append(float(value))
        return np.array(values)

    def whole(self, values: np.ndarray) -> np.ndarray:
        """Numbers of frames, int64 [N]."""
        with np.errstate(invalid="ignore"):
            odd = ~((values >= 0) & (values < 2**53) & (values == np.floor(values)))
        if odd.any():
            row = int(odd.argmax())
            raise ZooError(
                f"{self.path}, line {self.lines[row][0]}: frame {values[row]:g}, expected a whole "
                "number from 0 on"
            )
        return values.astype(np.int64)

    def check_finite(self, values: np.ndarray, what: str) -> None:
        """Raise :class:`ZooError` if a number of [N, ...] is NaN or infinite."""
        odd = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if odd.any():
            number = self.lines[int(odd.argmax())][0]
            raise ZooError(f"{self.path}, line {number}: {what} is not finite, expected numbers")


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    plain = re.sub("[^a-z0-9]", "", name.lower())
    return re.sub("^(bbox|bb|box)(?=.)", "", plain)


def _named_places(path: Path, header: Sequence[str], frames: bool) -> dict[str, int]:
    """Column -> its place; of several names for one thing, the plainest."""
    plain = [_plain(name) for name in header]
    places = {
        column: plain.index(next(name for name in names.split() if name in plain))
        for column, names in _NAMES.items()
        if set(names.split()) & set(plain)
    }
    known = set(places)
    ways = (
        {"left", "top", "width", "height"},
        {"left", "top", *_CORNERS},
        {*_CENTRE, "width", "height"},
    )
    if (frames and "frame" not in known) or not any(way <= known for way in ways):
        raise ZooError(
            f"{path}: columns {', '.join(header)[:200]}; expected "
            + ("frame and " if frames else "")
            + "x, y, w, h (or x1, y1, x2, y2; or cx, cy, w, h), and perhaps id and score"
        )
    return places


def _boxes(path: Path, content: Mapping[str, np.ndarray]) -> np.ndarray:
    """(left, top, width, height) from whatever the table has."""
    if {"left", "top", "width", "height"} <= content.keys():
        return np.column_stack([content[n] for n in ("left", "top", "width", "height")])
    if content.keys() >= {*_CENTRE}:
        size = np.column_stack([content["width"], content["height"]])
        return np.concatenate([np.column_stack([content[n] for n in _CENTRE]) - size / 2, size], 1)
    low = np.column_stack([content["left"], content["top"]])
    high = np.column_stack([content[name] for name in _CORNERS])
    wrong = (high < low).any(1)
    if wrong.sum() > len(wrong) / 2:
        log.warning(
            "%s: in %d of %d rows the second corner lies before the first: these columns are taken "
            "for width and height, whatever the header calls them",
            *(path, wrong.sum(), len(wrong)),
        )
        return np.concatenate([low, high], 1)
    return np.concatenate([low, high - low], 1)


def _with_extent(rows: _Rows, boxes: np.ndarray) -> np.ndarray:
    """Which boxes have width and height, bool [N]."""
    rows.check_finite(boxes, "the box")
    negative = (boxes[:, 2:] < 0).any(1)
    if negative.any():
        row = int(negative.argmax())
        raise ZooError(
            f"{rows.path}, line {rows.lines[row][0]}: a box of {boxes[row, 2]:g} x "
            f"{boxes[row, 3]:g} pixels, expected left, top, width and height"
        )
    if len(boxes) and np.abs(boxes).max() <= 1 and (boxes % 1).any():
        raise ZooError(f"{rows.path}: no box exceeds 1, expected pixels, not shares of the picture")
    kept = (boxes[:, 2:] > 0).all(1)
    if not kept.all():
        log.warning("%s: %d boxes without extent are left out", rows.path, (~kept).sum())
    return kept
