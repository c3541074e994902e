"""Pathfinder by its published rules (Linsley et al. 2018): do two dots lie on one dashed path?

Two long paths of dashes that curve gently, each with room around it, and shorter ones that
distract. A dot marks an end of a path; the other dot is at its other end, or at an end of the
second path.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

#: Pixels that are drawn for each pixel of the picture and side.
FINER = 4
#: Of the picture's side: length of a dash, gap behind it, radius of a dot, thickness, free room.
DASH, GAP, DOT, THICK, ROOM = 0.05, 0.028, 0.035, 0.018, 0.045
#: Most that a path turns from dash to dash, in radians.
TURN = 0.6
TRIES = 200
#: Cells of a side in which room is counted.
CELLS = 100


def draw_pathfinder(
    random: np.random.Generator, size: int, contour_length: int, connected: bool
) -> np.ndarray:
    """A picture of paths and two dots.

    Args:
        random: draws it.
        size: side in pixels, from 32 on.
        contour_length: dashes of each of the two long paths; distractors have a third.
        connected: whether one path has both dots.

    Returns:
        grey uint8 [size, size].
    """
    while True:
        free = np.ones((CELLS, CELLS), bool)
        paths: list[np.ndarray] = []
        distractors = max(2, 60 // contour_length)
        lengths = [contour_length] * 2 + [max(1, contour_length // 3)] * distractors
        for length in lengths:
            path = _path(random, length, free)
            if path is None:
                break
            paths.append(path)
            for dash in path:
                _take(free, dash)
        if len(paths) >= 2:
            break
    first, second = paths[:2]
    ends = (first[0, 0], first[-1, 1] if connected else second[-1, 1])
    return _draw(paths, ends, size)


def _path(random: np.random.Generator, dashes: int, free: np.ndarray) -> np.ndarray | None:
    """A path [dashes, 2 ends, 2] in the free cells of the unit square, away from itself."""
    for _ in range(TRIES):
        place, angle = random.uniform(0.1, 0.9, 2), random.uniform(0, 2 * np.pi)
        own, path = free.copy(), []
        while len(path) < dashes:
            angles = angle + random.uniform(-TURN, TURN, 8)
            steps = np.stack([np.cos(angles), np.sin(angles)], 1)
            # first those that do not run into the border
            ahead = np.abs(place + 4 * DASH * steps - 0.5).max(1)
            for choice in np.argsort(ahead > 0.45, kind="stable"):
                angle, step = angles[choice], steps[choice]
                dash = np.stack([place, place + DASH * step])
                if _is_free(dash, own):
                    break
            else:
                break
            if path:  # not the newest, beside which the next one has to be
                _take(own, path[-1])
            path.append(dash)
            place = dash[1] + GAP * step
        if len(path) == dashes:
            return np.stack(path)
    return None


def _cells(dash: np.ndarray) -> np.ndarray:
    """The cells [5, 2] of five points of a dash."""
    shares = np.linspace(0, 1, 5)[:, None]
    return ((dash[0] * (1 - shares) + dash[1] * shares) * CELLS).astype(int)


def _is_free(dash: np.ndarray, free: np.ndarray) -> bool:
    if dash.min() < DOT or dash.max() > 1 - DOT:
        return False
    return bool(free[tuple(_cells(dash).T)].all())


def _take(free: np.ndarray, dash: np.ndarray) -> None:
    """Leave no room near a dash."""
    for row, column in _cells(dash):
        reach = round(ROOM * CELLS)
        free[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 0


def _draw(paths: list[np.ndarray], ends: tuple[np.ndarray, np.ndarray], size: int) -> np.ndarray:
    side = size * FINER
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    for dash in np.concatenate(paths):
        pen.line([tuple(point * side) for point in dash], fill=255, width=round(THICK * side))
    for end in ends:
        low, high = (end - DOT) * side, (end + DOT) * side
        pen.ellipse((*low, *high), fill=255)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
