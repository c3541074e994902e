"""Made pictures of discs, squares and triangles, with COCO's annotations of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.draw import disk, polygon

#: Kinds of objects and their numbers, which have gaps as COCO's have.
CATEGORIES = {"disc": 1, "square": 4, "triangle": 9}


def draw_figures(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One to four discs, squares and triangles of any colour, turned, later ones in front.

    Returns:
        picture [size, size, 3] in 0..1, and annotations of what can be seen of each, if that is at
        least a quarter: ``category_id``, ``bbox``, ``area``, ``segmentation`` (run lengths).
    """
    from pycocotools.mask import encode

    names = list(CATEGORIES)
    ground = rng.uniform(0.2, 0.8, 3)
    picture = ground + rng.normal(0, 0.05, (size, size, 3))
    owner, whole = np.full((size, size), -1), []
    kinds = [names[i] for i in rng.integers(0, len(names), rng.integers(1, 5))]
    for i, kind in enumerate(kinds):
        radius = rng.uniform(0.1, 0.24) * size
        centre = rng.uniform(radius, size - radius, 2)
        if kind == "disc":
            where = disk(centre, radius, shape=owner.shape)
        else:
            corners = 4 if kind == "square" else 3
            angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
            rows, columns = centre[:, None] + radius * np.stack([np.sin(angles), np.cos(angles)])
            where = polygon(rows, columns, shape=owner.shape)
        colour = rng.uniform(0, 1, 3)
        while np.abs(colour - ground).max() < 0.3:
            colour = rng.uniform(0, 1, 3)
        picture[where] = colour + rng.normal(0, 0.05, (len(where[0]), 3))
        owner[where] = i
        whole.append(len(where[0]))
    objects = []
    for i, kind in enumerate(kinds):
        seen = owner == i
        if seen.sum() < whole[i] / 4:
            continue
        encoded = encode(np.asfortranarray(seen, np.uint8))
        rows, columns = np.nonzero(seen)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        objects.append(
            {
                "category_id": CATEGORIES[kind],
                "bbox": box,
                "area": int(seen.sum()),
                "segmentation": {"size": [size, size], "counts": encoded["counts"].decode()},
            }
        )
    return np.clip(picture, 0, 1), objects
