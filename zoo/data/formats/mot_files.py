"""The files of MOT Challenge: annotations, detections, tracks, and what a clip is.

A row of theirs is ``frame, number, left, top, width, height, ...``, frames from 1, pixels; a CSV or
TSV file with a header may stand in its place, see :mod:`zoo.data.formats.box_tables`. Where a clip
counts its frames from 0, they are counted from 1 here.
"""

from __future__ import annotations

import configparser
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.formats.box_tables import FRAME_FILE_COLUMNS, MOT_COLUMNS, BoxTable, read_boxes
from zoo.data.formats.files import numbered
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.errors import ZooError

log = logging.getLogger("zoo")

LAYOUT = "a folder for each clip with gt/gt.txt, seqinfo.ini and img1/"
#: Endings of files of detections.
TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".txt"])
#: Sides of a picture, and frames that a clip may have for each row of its files or picture.
LONGEST_SIDE, LONGEST_GAP, SHORT_CLIP = 65_535, 1_000, 100_000


class Clip(NamedTuple):
    """One sequence, boxes in pixels.

    Attributes:
        name: of its folder, which is ``folder``.
        width, height, length: of a picture, and the number of frames.
        rate: frames per second.
        detections: (left, top, width, height, score) [M, 5] for each frame.
        annotations: (frame from 1, number, left, top, width, height, mark, class, visibility)
            [N, 9], as they stand in the file; empty where nobody annotated the clip.
    """

    name: str
    folder: Path
    width: int
    height: int
    length: int
    rate: float
    detections: list[np.ndarray]
    annotations: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Annotated pedestrians (frame, number, left, top, width, height) [N, 6], by number, then
        by frame.

        As TrackSSM's authors, leaves out what is marked 0 or of another class than 1.
        """
        rows = self.annotations
        rows = rows[(rows[:, 6] != 0) & (rows[:, 7] == 1), :6]
        return rows[np.lexsort((rows[:, 0], rows[:, 1]))]

    def tracks(self) -> dict[int, np.ndarray]:
        """The annotated (frame, centre x, centre y, width, height) [T, 5] of each object."""
        truth, tracks = self.truth, {}
        for number in np.unique(truth[:, 1]):
            rows = truth[truth[:, 1] == number][:, [0, 2, 3, 4, 5]]
            rows[:, 1:3] += rows[:, 3:5] / 2
            tracks[int(number)] = rows
        return tracks


def read_clip(folder: Path, detections: Path | None = None, detected: bool = True) -> Clip:
    """Read a clip's folder.

    Args:
        folder: with ``seqinfo.ini`` and, if it is annotated, ``gt/gt.txt``.
        detections: a file of rows ``frame, -1, left, top, width, height, score``, or a folder with
            a file of rows ``anything, left, top, width, height, score`` for each frame, which its
            name counts; None for ``det/det.txt``.
        detected: read them.

    Raises:
        ZooError: a file is missing or no such file.
    """
    width, height, length, rate = _read_info(folder / "seqinfo.ini")
    place = detections or folder / "det" / "det.txt"
    tables = {place: _read_detections(place)} if detected else {}
    annotations = folder / "gt" / "gt.txt"
    if annotations.exists():
        tables[annotations] = read_boxes(annotations)
    pictures = _picture_numbers(folder)
    counted = _from_one(tables, pictures, length)
    known = sum(len(table.frames) for table in tables.values()) + len(pictures)
    _check_length(folder / "seqinfo.ini", length, known)
    return Clip(
        *(folder.name, folder, width, height, length, rate),
        _per_frame(counted[place], length) if detected else [],
        _annotations(annotations, counted[annotations])
        if annotations in counted
        else np.zeros((0, 9)),
    )


def clip_of_detections(path: Path) -> Clip:
    """A user's clip: its detections are known, the rest stands around them.

    Pictures are looked for beside the detections, or in ``img1`` beside them or beside their
    folder; there the size of the picture is found, unless there is a ``seqinfo.ini``. Without
    either, a picture is taken to end where the boxes do.

    Args:
        path: see :func:`read_clip`.

    Raises:
        ZooError: a file is missing or no such file.
    """
    near = path.parent
    folder = near.parent if near.name == "det" else near
    name = near.name if path.stem in ("det", "detections") and near != folder else path.stem
    name = folder.name if path.stem in ("det", "detections") else name
    table = _read_detections(path)
    numbers = _picture_numbers(folder)
    info = folder / "seqinfo.ini"
    length = None
    if info.exists():
        width, height, length, rate = _read_info(info)
    counted = _from_one({path: table}, numbers, length)[path]
    last = max([*counted.frames.tolist(), 0])
    if not info.exists():
        pictures = frame_pictures(folder)
        length, rate = max(pictures, default=0), 25.0
        if pictures:
            width, height = read_picture(next(iter(pictures.values()))).size
        else:
            width, height = _extent(path, table)
    length = max(length or 0, last)
    _check_length(path, length, len(table.frames) + len(numbers))
    detections = _per_frame(counted, length)
    return Clip(name, folder, width, height, length, rate, detections, np.zeros((0, 9)))


def read_detections(path: Path, length: int | None = None) -> list[np.ndarray]:
    """Read what a detector found, see :func:`read_clip`.

    Args:
        path: a file, or a folder with one for each frame.
        length: frames of the clip; by default, the last one that there are detections for.

    Returns:
        (left, top, width, height, score) [M, 5] for each frame.
    """
    table = _from_one({path: _read_detections(path)}, {}, length)[path]
    length = length or max(table.frames.tolist(), default=0)
    _check_length(path, length, len(table.frames))
    return _per_frame(table, length)


def frame_pictures(folder: Path) -> dict[int, Path]:
    """Frame, from 1, -> picture of a clip, in order: in ``img1`` if there is one, else in its
    folder. Pictures without a number in their names are none of the clip's."""
    numbers = _picture_numbers(folder)
    shift = 1 if min(numbers, default=1) == 0 else 0
    return {number + shift: path for number, path in numbers.items()}


def _picture_numbers(folder: Path) -> dict[int, Path]:
    """Number in its name -> picture of a clip, in order."""
    folder = folder / "img1" if (folder / "img1").is_dir() else folder
    return numbered(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)


def _read_detections(path: Path) -> BoxTable:
    """The rows of a file, or of a file for each frame."""
    if not path.is_dir():
        return read_boxes(path, MOT_COLUMNS[:7], 7, LAYOUT)
    files = numbered(p for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
    if not files:
        raise ZooError(f"{path} holds no files such as 000001.txt, expected one for each frame")
    tables = {n: read_boxes(file, FRAME_FILE_COLUMNS, 6) for n, file in files.items()}
    scores = np.concatenate([table.column("score", 1) for table in tables.values()])
    return BoxTable(
        np.concatenate([np.full(len(table.frames), n) for n, table in tables.items()]),
        np.concatenate([table.boxes for table in tables.values()]),
        {"score": scores},
    )


def _from_one(
    tables: Mapping[Path, BoxTable], pictures: Mapping[int, Path], length: int | None
) -> dict[Path, BoxTable]:
    """The tables of a clip with frames counted from 1.

    A table that names frame 0 counts from 0, and one that names a frame which there would not be
    then, from 1. One that does neither counts as the pictures do, or else the clip's other tables.

    Raises:
        ZooError: a table names frames that the clip does not have.
    """
    last = length - 1 if length is not None else max(pictures) if 0 in pictures else None
    starts: dict[Path, int | None] = {}
    for path, table in tables.items():
        low, high = (int(end(table.frames, initial=1)) for end in (np.min, np.max))
        starts[path] = 0 if low == 0 else 1 if last is not None and high > last else None
        if length is not None and high >= length + (low > 0):
            raise ZooError(
                f"{path} names frame {high}, but the clip has {length} frames"
                + (", the first one being 0" if low == 0 else "")
            )
    others = [min(*pictures, 1)] if pictures else []
    others += [start for start in starts.values() if start is not None]
    counted = {}
    for path, table in tables.items():
        start = starts[path]
        shift = 1 - (next(iter(others), 1) if start is None else start)
        counted[path] = table._replace(frames=table.frames + shift)
        if shift:
            log.warning("%s counts frames from 0; they are counted from 1 here", path)
    return counted


def _check_length(path: Path, length: int, known: int) -> None:
    """Raise :class:`ZooError` if a clip is far longer than what is known of it."""
    if length > max(SHORT_CLIP, LONGEST_GAP * known):
        raise ZooError(
            f"{path}: {length:,} frames, of which {known:,} rows and pictures are known: expected "
            "frames counted from 0 or 1"
        )


def _per_frame(table: BoxTable, length: int) -> list[np.ndarray]:
    """(left, top, width, height, score) [M, 5] of each frame from 1 to ``length``."""
    rows = np.column_stack([table.boxes, table.column("score", 1)])
    order = np.argsort(table.frames, kind="stable")
    places = np.searchsorted(table.frames[order], np.arange(1, length + 2))
    return [rows[order[a:b]] for a, b in pairwise(places)]


def _annotations(path: Path, table: BoxTable) -> np.ndarray:
    if "number" not in table.columns and len(table.frames):
        raise ZooError(f"{path}: no column says which object a box is of, expected one named id")
    kinds = table.column("kind", 1)
    if (kinds == -1).all():  # MOT15 has a coordinate of the world there
        kinds = np.ones(len(kinds))
    columns = [table.column("score", 1), kinds, table.column("visible", 1)]
    return np.column_stack([table.frames, table.column("number", -1), table.boxes, *columns])


def _extent(path: Path, table: BoxTable) -> tuple[int, int]:
    """Width and height of a picture that holds all boxes."""
    edges = (table.boxes[:, :2] + table.boxes[:, 2:]).max(0, initial=1)
    _check_sides(path, *edges)
    width, height = (int(np.ceil(edge)) for edge in edges)
    log.warning(
        "%s: the size of the pictures is not known, as there is neither seqinfo.ini nor a frame "
        "beside it: taken for %d x %d, where the boxes end",
        *(path, width, height),
    )
    return width, height


def _check_sides(path: Path, width: float, height: float) -> None:
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
        raise ZooError(
            f"{path}: pictures of {width:g} x {height:g} pixels, expected sides of 1 to "
            f"{LONGEST_SIDE}"
        )


def write_tracks(path: Path, rows: np.ndarray) -> None:
    """Write tracks as MOT Challenge wants them.

    Args:
        path: of the file.
        rows: (frame, number, left, top, width, height) [N, 6].
    """
    lines = [
        f"{int(frame)},{int(number)},{x:.2f},{y:.2f},{w:.2f},{h:.2f},1,-1,-1,-1"
        for frame, number, x, y, w, h in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def write_annotations(path: Path, rows: np.ndarray) -> None:
    """Write :attr:`Clip.annotations` as MOT Challenge has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, "%.12g", ",")


def write_clip(
    folder: Path, width: int, height: int, boxes: np.ndarray, detections: Sequence[np.ndarray]
) -> None:
    """Write a clip's folder, but for the pictures; ``img1`` is there for them.

    Args:
        folder: of the clip.
        width, height: of the pictures.
        boxes: (left, top, width, height) of every object in every frame [T, N, 4].
        detections: (left, top, width, height, score) [M, 5] for each frame.
    """
    for name in ("gt", "det", "img1"):
        (folder / name).mkdir(parents=True)
    truth = [
        f"{frame + 1},{number + 1},{x:.2f},{y:.2f},{w:.2f},{h:.2f},1,1,1\n"
        for frame, objects in enumerate(boxes)
        for number, (x, y, w, h) in enumerate(objects)
    ]
    found = [
        f"{frame + 1},-1,{x:.2f},{y:.2f},{w:.2f},{h:.2f},{score:.4f}\n"
        for frame, rows in enumerate(detections)
        for x, y, w, h, score in rows
    ]
    (folder / "gt" / "gt.txt").write_text("".join(truth))
    (folder / "det" / "det.txt").write_text("".join(found))
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate=25\nseqLength={len(boxes)}\n"
        f"imWidth={width}\nimHeight={height}\nimExt=.jpg\n"
    )


def _read_info(path: Path) -> tuple[int, int, int, float]:
    """Width, height, number of frames, frames per second."""
    if not path.exists():
        raise ZooError(f"{path} is missing, expected {LAYOUT}")
    parser = configparser.ConfigParser()
    try:
        parser.read(path, encoding="utf-8-sig")
        info = parser["Sequence"]
        width, height, length = (int(info[key]) for key in ("imWidth", "imHeight", "seqLength"))
        rate = float(info.get("frameRate", "25"))
    except (configparser.Error, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ZooError(
            f"{path}: expected imWidth, imHeight and seqLength in [Sequence] ({reason})"
        ) from error
    _check_sides(path, width, height)
    if length < 1 or not 0 < rate <= 100_000:
        raise ZooError(
            f"{path}: seqLength {length} and frameRate {rate:g}, expected 1 or more frames, and "
            "more than 0 of them a second"
        )
    return width, height, length, rate
