"""Made portraits: silhouettes with dotted and striped shirts on cluttered grounds."""

from __future__ import annotations

import numpy as np
from skimage.draw import ellipse
from skimage.filters import gaussian


def draw_portrait(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Head and shoulders with a dotted or striped shirt on a cluttered ground.

    Returns:
        picture [size, size, 3] in 0..1, and the person's mask, bool [size, size].
    """
    ground = gaussian(rng.random((size, size, 3)), 3, channel_axis=2)
    ground = (ground - ground.min()) / np.ptp(ground)
    for _ in range(rng.integers(4, 10)):  # clutter with sharp edges
        rows, columns = ellipse(
            *rng.uniform(0, size, 2), *rng.uniform(0.03, 0.15, 2) * size, shape=(size, size)
        )
        ground[rows, columns] = rng.random(3)
    scale = rng.uniform(0.7, 1.1) * size
    middle = rng.uniform(0.35, 0.65) * size
    top = rng.uniform(0.25, 0.45) * size
    head, body = np.zeros((2, size, size), bool)
    shape = (size, size)
    head[ellipse(top, middle, 0.19 * scale, 0.145 * scale, shape=shape)] = True
    body[ellipse(top + 0.62 * scale, middle, 0.42 * scale, 0.34 * scale, shape=shape)] = True
    body &= ~head
    y, x = np.mgrid[:size, :size]
    period = rng.uniform(0.05, 0.1) * size
    angle = rng.uniform(0, np.pi)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    if rng.random() < 0.5:  # dots
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    shirt = np.where((wave > 0.1)[..., None], rng.random(3), rng.random(3))
    image = np.where(body[..., None], shirt, ground)
    skin = np.array([0.85, 0.65, 0.5]) * rng.uniform(0.45, 1.1) + rng.normal(0, 0.03, 3)
    image = np.where(head[..., None], skin, image)
    image = image * rng.uniform(0.7, 1.1) + rng.normal(0, 0.03, image.shape)
    return np.clip(image, 0, 1), head | body
