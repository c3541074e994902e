"""Made crowds: discs of three sizes, of which one counts."""

from __future__ import annotations

import numpy as np
from skimage.draw import disk

#: Radii of the discs, and the period in pixels of the band that tells which of them count.
RADII, PERIODS = (2, 4, 8), (4, 8, 16)
BAND = 6


def draw_discs(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs of three radii on noise; the period of a band at the left tells which radius counts.

    Returns:
        picture [size, size, 3] in 0..1, centres (x, y) of the discs that count [N, 2].
    """
    chosen = int(rng.integers(len(RADII)))
    image = rng.uniform(0.3, 0.5, (size, size, 3))
    stripes = (np.arange(size) // (PERIODS[chosen] // 2)) % 2
    image[:, :BAND] = np.where(stripes, 0.95, 0.05)[:, None, None]
    centres: list[tuple[float, float, int]] = []
    for _ in range(200):
        kind = int(rng.integers(len(RADII)))
        radius = RADII[kind]
        y = rng.uniform(radius, size - radius)
        x = rng.uniform(BAND + radius + 2, size - radius)
        if all(np.hypot(x - a, y - b) > radius + RADII[k] + 1 for a, b, k in centres):
            centres.append((x, y, kind))
            image[disk((y, x), radius, shape=(size, size))] = rng.uniform(0.75, 0.9)
        if len(centres) >= rng.integers(8, 30):
            break
    points = np.array([(x, y) for x, y, kind in centres if kind == chosen], float)
    return image, points.reshape(-1, 2)
