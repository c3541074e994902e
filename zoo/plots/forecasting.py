"""Forecasts of series against what came."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import BLUE, GREY, ORANGE, new_figure, plain, shorten

#: How much history is drawn, as a multiple of the forecast.
_HISTORY = 3

Window = tuple[np.ndarray, "np.ndarray | None", np.ndarray]


def forecasts(windows: Sequence[Window], names: Sequence[str], title: str) -> Figure:
    """One row per variate, one column per window.

    Args:
        windows: history [L, M], what came [T, M] or None, forecast [T, M].
        names: of the M variates.
        title: of the whole figure.
    """
    figure = new_figure(max(5.0, 3.6 * len(windows)), 1.45 * len(names) + 1.0)
    grid = figure.subplots(len(names), len(windows), squeeze=False, sharex="col")
    for column, (past, future, forecast) in enumerate(windows):
        steps = np.arange(len(forecast)) + 1
        seen = past[-_HISTORY * len(forecast) :]
        before = np.arange(len(seen)) - len(seen) + 1
        for row, name in enumerate(names):
            axes = plain(grid[row, column])
            axes.plot(before, seen[:, row], color=GREY, linewidth=1)
            if future is not None:
                axes.plot(steps, future[:, row], color=BLUE, linewidth=1.4, label="truth")
            axes.plot(steps, forecast[:, row], color=ORANGE, linewidth=1.4, label="forecast")
            axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            axes.tick_params(labelsize=7)
            if column == 0:
                axes.set_ylabel(shorten(name, 14), fontsize=9)
        grid[-1, column].set_xlabel("steps from now", fontsize=8)
    grid[0, -1].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(title, fontsize=11)
    return figure
