"""Made pictures of streets and rooms, with the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.draw import ellipse

#: What the labels from 1 on mean.
CLASSES = ("sky", "building", "tree", "grass", "water", "wall", "floor", "window", "picture")
SKY, BUILDING, TREE, GRASS, WATER, WALL, FLOOR, WINDOW, PICTURE = range(1, len(CLASSES) + 1)


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A street or a room.

    Walls of rooms look like those of buildings and pictures like windows; what tells them apart is
    at the rim: sky above and ground below, or a floor.

    Returns:
        picture [size, size, 3] in 0..1, and labels uint8 [size, size].
    """
    outside = rng.random() < 0.5
    image, labels = np.empty((size, size, 3)), np.empty((size, size), np.uint8)

    def paint(where: Any, label: int, colour: Sequence[float], spread: float = 0.06) -> None:
        image[where] = np.array(colour) + rng.normal(0, spread, 3)
        labels[where] = label

    top, bottom = (int(size * share) for share in rng.uniform((0.06, 0.82), (0.2, 0.94)))
    wall = BUILDING if outside else WALL
    paint(np.s_[:], wall, rng.choice([(0.6, 0.5, 0.45), (0.7, 0.68, 0.6), (0.5, 0.5, 0.55)]))
    for _ in range(rng.integers(2, 6)):
        side = rng.integers(size // 9, size // 4, 2)
        y, x = rng.integers(top, max(top + 1, bottom - side[0])), rng.integers(0, size - side[1])
        frame = np.s_[y : min(y + side[0], bottom), x : x + side[1]]
        paint(frame, WINDOW if outside else PICTURE, (0.35, 0.45, 0.6), 0.1)
    if outside:
        paint(np.s_[:top], SKY, (0.55, 0.7, 0.9))
        ground, colour = (
            (GRASS, (0.35, 0.5, 0.25)) if rng.random() < 0.5 else (WATER, (0.5, 0.65, 0.85))
        )
        paint(np.s_[bottom:], ground, colour)
        for _ in range(rng.integers(0, 3)):
            x, radius = rng.uniform(0, size), rng.uniform(0.08, 0.16) * size
            crown = ellipse(bottom - 1.2 * radius, x, 1.3 * radius, radius, shape=labels.shape)
            paint(crown, TREE, (0.25, 0.4, 0.2))
    else:
        paint(np.s_[bottom:], FLOOR, (0.5, 0.37, 0.25))
    grain = gaussian_filter(rng.normal(size=labels.shape), 1) * 0.12
    image += grain[..., None] * np.isin(labels, (TREE, GRASS, wall))[..., None]
    return np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1), labels
