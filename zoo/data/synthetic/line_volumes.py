"""Made volumes of thin curved lines of three brightnesses on noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from skimage.draw import line

LINE_CLASSES = ("background", "faint line", "clear line", "bright line")
#: Brightness of the made slices' ground and of their lines' classes, in Synapse's range of 0..1.
GROUND_LEVEL, LINE_LEVELS = 0.25, (0.49, 0.67, 0.85)


def line_volumes(
    rng: np.random.Generator, slices: int, size: int, first: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """As many volumes of eight slices as ``slices`` need, two at least.

    Args:
        rng: of the lines.
        slices: wanted.
        size: side of a slice in pixels.
        first: number of the first volume.

    Yields:
        number, image [8, size, size] float32 and labels of the same shape, uint8.
    """
    for case in range(first, first + max(2, -(-slices // 8))):
        pairs = [draw_lines(rng, size) for _ in range(8)]
        image, label = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        yield case, image, label


def draw_lines(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Curved lines, one or two pixels thick, in three brightnesses on noise.

    Returns:
        image [size, size] float32 and labels [size, size] uint8, see :data:`LINE_CLASSES`.
    """
    image = np.full((size, size), GROUND_LEVEL)
    label = np.zeros((size, size), np.uint8)
    for kind in rng.permutation([1, 2, 3, *rng.integers(1, 4, 2)]):
        points = rng.uniform(0.05, 0.95, (3, 2)) * (size - 1)
        t = np.linspace(0, 1, 24)[:, None]
        curve = ((1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]).astype(
            int
        )
        thick = rng.integers(0, 2)
        for (r0, c0), (r1, c1) in pairwise(curve):
            rows, columns = line(r0, c0, r1, c1)
            for shift in range(thick + 1):
                moved = np.minimum(columns + shift, size - 1)
                image[rows, moved] = LINE_LEVELS[kind - 1]
                label[rows, moved] = kind
    noisy = image + rng.normal(0, 0.06, image.shape)
    return noisy.clip(0, 1).astype(np.float32), label
