"""Made pictures of polygons with fine patterns, and holes to be filled."""

from __future__ import annotations

import numpy as np
from skimage.draw import polygon


def draw_polygons(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured polygons with a fine pattern each, and without.

    Returns:
        two pictures [size, size, 3] in 0..1.
    """
    flat = np.broadcast_to(rng.uniform(0.2, 0.8, 3), (size, size, 3)).copy()
    pattern = np.zeros((size, size))
    y, x = np.mgrid[:size, :size]
    for _ in range(rng.integers(3, 6)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 6)))
        radius, middle = rng.uniform(0.2, 0.5) * size, rng.uniform(0.1, 0.9, 2) * size
        place = polygon(
            middle[0] + radius * np.sin(angles),
            middle[1] + radius * np.cos(angles),
            shape=(size, size),
        )
        flat[place] = rng.uniform(0.1, 0.9, 3)
        kinds = ((x // 2) % 2, (y // 2) % 2, (x // 2 + y // 2) % 2, np.zeros_like(x))
        pattern[place] = (kinds[rng.integers(4)] - 0.5)[place]
    return np.clip(flat + 0.2 * pattern[..., None], 0, 1), flat


def draw_holes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Blocks that cover a quarter of a square, bool [size, size]."""
    mask = np.zeros((size, size), bool)
    while mask.mean() < 0.25:
        height, width = rng.integers(size // 8, size // 5, 2)
        row, column = rng.integers(0, size - height), rng.integers(0, size - width)
        mask[row : row + height, column : column + width] = True
    return mask
