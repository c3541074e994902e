"""Crops of the photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import skimage.data
from PIL import Image

#: Colour pictures to learn from, and those to be judged on.
LEARNT = (
    "astronaut", "rocket", "immunohistochemistry", "stereo_motorcycle", "retina",
    "hubble_deep_field",
)  # fmt: skip
JUDGED = ("coffee", "chelsea")


def crops(
    rng: np.random.Generator, names: Sequence[str], count: int, size: int, recolour: bool
) -> Iterator[np.ndarray]:
    """Random crops of the pictures in turn, uint8 [size, size, 3].

    Args:
        rng: of the places.
        names: of the pictures.
        count: how many crops.
        size: their side.
        recolour: exchange the colour channels at random; few pictures have few colours.
    """
    pictures = [_load(name) for name in names]
    for number in range(1, count + 1):
        pixels = pictures[number % len(pictures)]
        top, left = (int(rng.integers(0, side - size + 1)) for side in pixels.shape[:2])
        crop = pixels[top : top + size, left : left + size]
        yield crop[..., rng.permutation(3)] if recolour else crop


def _load(name: str) -> np.ndarray:
    """A picture, RGB, at half its size, where there is more detail a pixel."""
    loaded = getattr(skimage.data, name)()
    pixels = loaded[0] if isinstance(loaded, tuple) else loaded
    return np.asarray(Image.fromarray(pixels).convert("RGB").reduce(2))
