"""Made X-rays: outlines of two lungs, and spots inside or outside of them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from skimage.draw import ellipse


def draw_xray(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Outlines of two lungs on a textured ground, and up to three bright spots anywhere.

    Lungs are no darker than what is around them: only the outlines, from afar, tell a spot inside
    from one outside.

    Returns:
        picture [size, size] in 0..1, mask of the lungs, whether a spot lies inside a lung.
    """
    lungs = np.zeros((size, size), bool)
    middle = rng.uniform(0.42, 0.58) * size
    for side in (-1, 1):
        rows, columns = ellipse(
            rng.uniform(0.4, 0.6) * size,
            middle + side * rng.uniform(0.18, 0.26) * size,
            rng.uniform(0.2, 0.34) * size,
            rng.uniform(0.09, 0.15) * size,
            shape=(size, size),
            rotation=rng.uniform(-0.25, 0.25),
        )
        lungs[rows, columns] = True
    texture = gaussian_filter(rng.normal(0, 1, (size, size)), 1.5)
    rim = gaussian_gradient_magnitude(lungs.astype(float), 1)
    image = 0.35 + 0.5 * rim + 0.04 * texture / texture.std()
    positive = bool(rng.integers(2))
    # spots keep a distance from the outlines
    share = gaussian_filter(lungs.astype(float), 2)
    # in small pictures nothing is far from an outline
    deep = 0.95 if share.max() > 0.95 else 0.9 * share.max()
    inside, outside = np.argwhere(share > deep), np.argwhere(share < 0.02)
    places = [outside[rng.integers(len(outside))] for _ in range(rng.integers(0, 3))]
    if positive:
        places.append(inside[rng.integers(len(inside))])
    y, x = np.mgrid[:size, :size]
    for row, column in places:
        spread = 2 * rng.uniform(1.8, 2.6) ** 2
        image += 0.45 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / spread)
    return np.clip(image, 0, 1), lungs, positive
