"""Made notes: three damped partials of a random pitch."""

from __future__ import annotations

import numpy as np

#: Strength of each partial, and how fast it fades, per second.
PARTIALS = ((1.0, 4.0), (0.5, 8.0), (0.25, 12.0))


def plucked_tone(
    random: np.random.Generator, samples: int, rate: int, pitches: tuple[float, float]
) -> np.ndarray:
    """A note that begins at once.

    Args:
        random: draws pitch, phases and the noise, a thousandth.
        samples, rate: length, and samples a second.
        pitches: lowest and highest fundamental in Hz.

    Returns:
        float32 [samples] in -1..1.
    """
    seconds = np.arange(samples) / rate
    pitch = np.exp(random.uniform(*np.log(pitches)))
    sound = random.normal(0, 0.001, samples)
    for number, (strength, fades) in enumerate(PARTIALS, start=1):
        phase = random.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * number * pitch * seconds + phase)
        sound += strength * np.exp(-fades * seconds) * wave
    return (0.5 * sound).astype(np.float32)
