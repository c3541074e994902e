"""Made words of sound: pairs of chirps, one after the other, in noise.

A word is an ordered pair of different shapes, so that neither shape alone tells which it is.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

#: Course of the frequency of a chirp in Hz, from its beginning to its end.
SHAPES = {"rise": (600.0, 2400.0), "fall": (2400.0, 600.0), "hold": (1200.0, 1200.0)}
#: The words: "risefall" and so on.
WORDS = tuple(first + second for first, second in permutations(SHAPES, 2))
#: Seconds of a chirp, and of the pause between two.
CHIRP, PAUSE = 0.18, 0.06
NOISE = 0.05


def chirped_word(random: np.random.Generator, word: str, rate: int, seconds: float) -> np.ndarray:
    """Sound of a word at any place, pitch and loudness.

    Args:
        random: draws these, and the noise.
        word: one of :data:`WORDS`.
        rate: samples a second.
        seconds: of the whole, more than a word's.

    Returns:
        float32 [rate * seconds] in -1..1.
    """
    shapes = [shape for shape in SHAPES if shape in word]
    shapes.sort(key=word.index)
    sound = random.normal(0, NOISE, round(rate * seconds))
    place = random.uniform(0.02, seconds - 2 * CHIRP - PAUSE - 0.02)
    pitch, loud = 2 ** random.uniform(-0.15, 0.15), random.uniform(0.3, 0.8)
    for shape in shapes:
        start, count = round(place * rate), round(CHIRP * rate)
        course = np.geomspace(*SHAPES[shape], count) * pitch
        phase = 2 * np.pi * np.cumsum(course) / rate
        sound[start : start + count] += loud * np.sin(phase) * np.hanning(count)
        place += CHIRP + PAUSE
    return np.clip(sound, -1, 1).astype(np.float32)
