"""The files of MOT Challenge: annotations, detections, tracks, and what a clip is.

A row of theirs is ``frame, number, left, top, width, height, ...``, frames from 1, pixels.
"""

from __future__ import annotations

import configparser
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.errors import ZooError

LAYOUT = "a folder for each clip with gt/gt.txt, seqinfo.ini and img1/"


class Clip(NamedTuple):
    """One sequence, boxes in pixels.

    Attributes:
        name: of its folder, which is ``folder``.
        width, height, length: of a picture, and the number of frames.
        rate: frames per second.
        detections: (left, top, width, height, score) [M, 5] for each frame.
        truth: (frame from 1, number, left, top, width, height) [N, 6], by number, then by frame;
            empty where nobody annotated it.
    """

    name: str
    folder: Path
    width: int
    height: int
    length: int
    rate: float
    detections: list[np.ndarray]
    truth: np.ndarray

    def tracks(self) -> dict[int, np.ndarray]:
        """The annotated (frame, centre x, centre y, width, height) [T, 5] of each object."""
        tracks = {}
        for number in np.unique(self.truth[:, 1]):
            rows = self.truth[self.truth[:, 1] == number][:, [0, 2, 3, 4, 5]]
            rows[:, 1:3] += rows[:, 3:5] / 2
            tracks[int(number)] = rows
        return tracks


def read_clip(folder: Path, detections: Path | None = None, detected: bool = True) -> Clip:
    """Read a clip's folder.

    Args:
        folder: with ``seqinfo.ini`` and, if it is annotated, ``gt/gt.txt``.
        detections: where they are, see :func:`read_detections`; None for ``det/det.txt``.
        detected: read them.

    Raises:
        ZooError: a file is missing or no such file.
    """
    width, height, length, rate = _read_info(folder / "seqinfo.ini")
    found = read_detections(detections or folder / "det" / "det.txt", length) if detected else []
    annotations = folder / "gt" / "gt.txt"
    truth = read_truth(annotations) if annotations.exists() else np.zeros((0, 6))
    return Clip(folder.name, folder, width, height, length, rate, found, truth)


def clip_of_detections(path: Path) -> Clip:
    """A user's clip: its detections are known, the rest stands around them.

    Pictures are looked for beside the detections, or in ``img1`` beside them or beside their
    folder; there the size of the picture is found, unless there is a ``seqinfo.ini``.

    Args:
        path: see :func:`read_detections`.
    """
    near = path.parent
    folder = near.parent if near.name == "det" else near
    name = near.name if path.stem in ("det", "detections") and near != folder else path.stem
    name = folder.name if path.stem in ("det", "detections") else name
    detections = read_detections(path)
    info = folder / "seqinfo.ini"
    if info.exists():
        width, height, length, rate = _read_info(info)
    else:
        pictures = frame_pictures(folder)
        if not pictures:
            raise ZooError(
                f"{path}: the size of the pictures is not known: expected seqinfo.ini in {folder}, "
                "or the frames there or in img1"
            )
        (width, height), length, rate = read_picture(pictures[0]).size, len(pictures), 25.0
    length = max(length, len(detections))
    detections += [np.zeros((0, 5))] * (length - len(detections))
    return Clip(name, folder, width, height, length, rate, detections, np.zeros((0, 6)))


def frame_pictures(folder: Path) -> list[Path]:
    """The pictures of a clip in order: in ``img1`` if there is one, else in its folder."""
    folder = folder / "img1" if (folder / "img1").is_dir() else folder
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def read_detections(path: Path, length: int | None = None) -> list[np.ndarray]:
    """Read what a detector found.

    Args:
        path: a file of rows ``frame, -1, left, top, width, height, score``; or a folder with a file
            of rows ``anything, left, top, width, height, score`` for each frame, in order.
        length: frames of the clip; by default, as many as there are detections for.

    Returns:
        (left, top, width, height, score) [M, 5] for each frame.
    """
    if path.is_dir():
        found = [_read_rows(file, 6)[:, 1:6] for file in sorted(path.glob("*.txt"))]
        missing = (length or len(found)) - len(found)
        return found + [np.zeros((0, 5))] * missing
    rows = _read_rows(path, 7)
    last = int(rows[:, 0].max(initial=0))
    if length is not None and last > length:
        raise ZooError(f"{path}: detections in frame {last}, but the clip has {length} frames")
    order = np.argsort(rows[:, 0], kind="stable")
    places = np.searchsorted(rows[order, 0], np.arange(1, (length or last) + 2))
    return [rows[order[a:b], 2:7] for a, b in pairwise(places)]


def read_truth(path: Path) -> np.ndarray:
    """Annotated pedestrians (frame, number, left, top, width, height) [N, 6], by number and frame.

    As TrackSSM's authors, leaves out what is marked 0 or of another class than 1.
    """
    rows = _read_rows(path, 8)
    rows = rows[(rows[:, 6] != 0) & (rows[:, 7] == 1), :6]
    return rows[np.lexsort((rows[:, 0], rows[:, 1]))]


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
        parser.read(path)
        info = parser["Sequence"]
        width, height, length = (int(info[key]) for key in ("imWidth", "imHeight", "seqLength"))
        return width, height, length, float(info.get("frameRate", "25"))
    except (configparser.Error, KeyError, ValueError) as error:
        raise ZooError(
            f"{path}: expected imWidth, imHeight and seqLength in [Sequence] ({error})"
        ) from error


def _read_rows(path: Path, columns: int) -> np.ndarray:
    """Numbers separated by commas, at least so many in a row; an empty file has no rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file
            rows = np.loadtxt(path, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise ZooError(f"{path} is missing, expected {LAYOUT}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ZooError(
            f"{path}: expected rows of numbers with commas between them ({error})"
        ) from error
    if rows.size == 0:
        return np.zeros((0, columns))
    if rows.shape[1] < columns:
        raise ZooError(f"{path}: rows of {rows.shape[1]} numbers, expected {columns} or more")
    return rows
