"""Tracks drawn on the frames of a clip: boxes, numbers, and trails of where they came from."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from zoo.plots.style import new_figure

TRAIL = 20


def draw_tracks(picture: Image.Image, rows: np.ndarray, frame: int, trail: int = TRAIL) -> None:
    """Draw the tracks that are in a frame, each in a colour of its own.

    Args:
        picture: RGB, drawn on.
        rows: (frame, number, left, top, width, height) in pixels of the picture [N, 6].
        frame: which.
        trail: over so many frames before it, the way of a box's lower edge.
    """
    pen = ImageDraw.Draw(picture)
    unit = max(1, round(picture.width / 400))
    font = ImageFont.load_default(10 * unit)
    recent = rows[(rows[:, 0] <= frame) & (rows[:, 0] > frame - trail)]
    recent = recent[np.argsort(recent[:, 0], kind="stable")]
    for row in recent[recent[:, 0] == frame]:
        number, (x, y, w, h) = int(row[1]), row[2:]
        colour = track_colour(number)
        way = recent[recent[:, 1] == number]
        points = np.column_stack([way[:, 2] + way[:, 4] / 2, way[:, 3] + way[:, 5]])
        pen.line([tuple(p) for p in points], fill=colour, width=2 * unit, joint="curve")
        pen.rectangle((x, y, x + w, y + h), outline=colour, width=unit)
        corner = (x, y - 12 * unit)
        pen.rectangle(pen.textbbox(corner, str(number), font=font), fill=colour)
        pen.text(corner, str(number), fill="white", font=font)


def draw_detections(picture: Image.Image, detections: np.ndarray, high: float) -> None:
    """Draw (left, top, width, height, score) [M, 5]; those with scores below ``high`` in grey."""
    pen = ImageDraw.Draw(picture)
    for x, y, w, h, score in detections:
        colour = (20, 20, 20) if score > high else (150, 150, 150)
        pen.rectangle((x, y, x + w, y + h), outline=colour, width=max(1, picture.width // 400))


def frame_rows(rows: Sequence[Mapping[str, Image.Image]], title: str) -> Figure:
    """Frames of one shape in rows, each under its name.

    Args:
        rows: name -> picture.
        title: of the figure.
    """
    width = 4.2
    height = max(width * p.height / p.width + 0.3 for row in rows for p in row.values())
    figure = new_figure(width * len(rows[0]), height * len(rows) + 0.4)
    for row, axes_row in zip(
        rows, figure.subplots(len(rows), len(rows[0]), squeeze=False), strict=True
    ):
        for (name, picture), axes in zip(row.items(), axes_row, strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_title(name, fontsize=9)
            axes.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    return figure


def track_colour(number: int) -> tuple[int, int, int]:
    """Neighbouring numbers get colours far apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.85, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def write_animation(path: Path, frames: Iterable[Image.Image], rate: float) -> None:
    """Write an animated WebP, which browsers play.

    Args:
        path: ending in ``.webp``.
        frames: at least one.
        rate: frames per second.
    """
    frames = iter(frames)
    next(frames).save(
        path, save_all=True, append_images=frames, duration=round(1000 / rate), loop=0, quality=70
    )
