"""Spectrograms with what was said in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import BLUE, new_figure


@dataclass
class Heard:
    """A recording and what was recognised.

    Attributes:
        features: log-Mel spectrogram [T, bands], 100 frames a second.
        words: word, start and end in seconds; the words without times if nothing could be aligned.
        title: above the picture.
    """

    features: np.ndarray
    words: Sequence[tuple[str, float, float]]
    title: str


def spectrograms(recordings: Sequence[Heard], title: str) -> Figure:
    """Spectrograms below one another, each with its words where they are said."""
    seconds = max(len(heard.features) for heard in recordings) / 100
    figure = new_figure(min(max(6.0, 2.2 * seconds), 40.0), 2.5 * len(recordings) + 0.3)
    for heard, axes in zip(
        recordings, figure.subplots(len(recordings), 1, squeeze=False)[:, 0], strict=True
    ):
        length, bands = len(heard.features) / 100, heard.features.shape[1]
        axes.imshow(
            heard.features.T, origin="lower", aspect="auto", cmap="magma",
            extent=(0, length, 0, bands), interpolation="nearest",
        )  # fmt: skip
        for number, (word, start, end) in enumerate(heard.words):
            axes.axvspan(start, end, ymax=0.04, color=BLUE, lw=0)
            for edge in (start, end):
                axes.axvline(edge, color="white", lw=0.6, alpha=0.6)
            axes.text(
                (start + end) / 2, bands * (0.95, 0.84)[number % 2], word, color="white",
                fontsize=9, ha="center",
                va="top", bbox={"facecolor": "black", "alpha": 0.55, "pad": 1.5, "lw": 0},
            )  # fmt: skip
        axes.set_title(heard.title, fontsize=9, loc="left", wrap=True)
        axes.set(yticks=[], ylabel="Mel band", xlim=(0, length))
    axes.set_xlabel("seconds")
    figure.suptitle(title, fontsize=11)
    return figure
