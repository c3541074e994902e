"""Sounds as waves and as spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import BLUE, RED, new_figure, plain

#: Samples of a spectrogram's window, and from one to the next.
WINDOW, HOP = 512, 64
#: Below this many decades of power under the loudest everything is black.
RANGE = 5


@dataclass
class Sound:
    """A sound to be drawn.

    Attributes:
        samples: [S] in -1..1.
        title: beside it.
        known: so many samples were given, the others made; None: there is no such place.
    """

    samples: np.ndarray
    title: str
    known: int | None = None


def sounds(shown: Sequence[Sound], rate: int, title: str) -> Figure:
    """A row for each: the wave, and its spectrogram up to a quarter of the rate."""
    figure = new_figure(10, 1.8 * len(shown) + 0.8)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), sound in zip(grid, shown, strict=True):
        seconds = len(sound.samples) / rate
        plain(left)
        left.plot(np.arange(len(sound.samples)) / rate, sound.samples, color=BLUE, lw=0.5)
        left.set(ylim=(-1.05, 1.05), xlim=(0, seconds), ylabel=sound.title)
        power = np.log10(_power(sound.samples) + 1e-12)
        right.imshow(
            power, origin="lower", aspect="auto", cmap="magma", vmax=power.max(),
            vmin=power.max() - RANGE, extent=(0, seconds, 0, rate / 4000), interpolation="nearest",
        )  # fmt: skip
        right.set(ylabel="kHz")
        if sound.known is not None:
            for axes in (left, right):
                axes.axvline(sound.known / rate, color=RED, lw=1)
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    figure.suptitle(title, fontsize=11)
    return figure


def _power(samples: np.ndarray) -> np.ndarray:
    """[WINDOW // 4, frames]."""
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * np.hanning(WINDOW), axis=1)
    return (np.abs(spectrum) ** 2).T[: WINDOW // 4]
