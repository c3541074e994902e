"""Made pictures of outlined figures among clutter, for proofs that need more than a local view."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

#: Number of corners on a circle, at equal angles, and the radii that they take in turn.
_POLYGONS = {
    "triangle": (3, (1.0,)),
    "square": (4, (1.0,)),
    "pentagon": (5, (1.0,)),
    "four-pointed star": (8, (1.0, 0.4)),
    "five-pointed star": (10, (1.0, 0.45)),
    "circle": (24, (1.0,)),
}
FIGURES = (*_POLYGONS, "open square", "half circle")


def outlines(count: int, size: int = 32, seed: int = 0, clutter: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures of one figure each: random place, size (a third to all of the picture) and angle.

    Clutter is short strokes of the same grey values, anywhere.

    Returns:
        pictures [count, 3, size, size], about zero mean and unit variance, and classes [count],
        numbers in :data:`FIGURES`.
    """
    drawer = random.Random(seed)
    noise = np.random.RandomState(seed)
    pictures = np.empty((count, size, size), np.float32)
    classes = [drawer.randrange(len(FIGURES)) for _ in range(count)]
    for picture, figure in zip(pictures, classes, strict=True):
        picture[:] = _draw(FIGURES[figure], size, clutter, drawer)
        picture += noise.normal(0, 0.1, (size, size))
    images = torch.from_numpy((pictures - 0.15) / 0.3)[:, None].expand(-1, 3, -1, -1)
    return images.contiguous(), torch.tensor(classes)


def _draw(figure: str, size: int, clutter: int, drawer: random.Random) -> np.ndarray:
    image = Image.new("L", (size, size))
    canvas = ImageDraw.Draw(image)
    radius = drawer.uniform(0.2, 0.45) * size
    x, y = (drawer.uniform(radius, size - 1 - radius) for _ in range(2))
    canvas.line(_path(figure, x, y, radius, drawer.random()), fill=drawer.randint(150, 255))
    for _ in range(clutter):
        x, y = drawer.uniform(0, size), drawer.uniform(0, size)
        angle, length = drawer.uniform(0, math.tau), drawer.uniform(2, 5)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        canvas.line([(x, y), end], fill=drawer.randint(150, 255))
    return np.asarray(image, np.float32) / 255


def _path(figure: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners in drawing order; closed figures end where they began."""
    if figure == "open square":
        places = [(i / 4, 1.0) for i in range(4)]
    elif figure == "half circle":
        places = [(i / 24, 1.0) for i in range(13)] + [(0.0, 1.0)]
    else:
        corners, radii = _POLYGONS[figure]
        places = [(i / corners, radii[i % len(radii)]) for i in range(corners + 1)]
    return [
        (
            x + radius * far * math.cos(math.tau * (place + turn)),
            y + radius * far * math.sin(math.tau * (place + turn)),
        )
        for place, far in places
    ]
