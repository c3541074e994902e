"""Made words as small spectrograms: ordered pairs of chirps, each three bands wide, in noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo.data.synthetic.chirped_words import SHAPES, WORDS

FRAMES, BANDS = 32, 16
#: Frames of a chirp and of the pause; the last frame in which a word may end.
CHIRP, PAUSE, END = 7, 2, 23
NOISE = 0.5
_COURSES = {"rise": (3.0, 12.0), "fall": (12.0, 3.0), "hold": (7.5, 7.5)}


def chirp_frames(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Words at random places.

    Args:
        random: draws them.
        count: B.

    Returns:
        spectrograms [B, 32, 16] and the numbers of their words [B]; all end within three quarters.
    """
    bands = np.arange(BANDS)
    x = random.normal(0, NOISE, (count, FRAMES, BANDS))
    y = random.integers(0, len(WORDS), count)
    for frames, number in zip(x, y, strict=True):
        word = WORDS[number]
        place = random.integers(0, END - 2 * CHIRP - PAUSE + 1)
        shift = random.uniform(-1.5, 1.5)
        for shape in sorted((s for s in SHAPES if s in word), key=word.index):
            middle = np.linspace(*_COURSES[shape], CHIRP) + shift
            frames[place : place + CHIRP] += np.exp(-((bands - middle[:, None]) ** 2) / 2) * 1.5
            place += CHIRP + PAUSE
    return torch.from_numpy(x).float(), torch.from_numpy(y)
