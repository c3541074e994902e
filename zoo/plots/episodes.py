"""What a policy gets, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import BLUE, GREY, new_figure, plain


def rewards_of_episodes(episodes: Sequence[np.ndarray], title: str) -> Figure:
    """The sum of rewards of each episode as it grows (left), and the rewards of every step.

    Args:
        episodes: rewards [T] of each.
        title: of the figure.
    """
    longest = max(len(rewards) for rewards in episodes)
    table = np.full((len(episodes), longest), np.nan)
    figure = new_figure(10, 3.9)
    sums, steps = figure.subplots(1, 2)
    plain(sums)
    for row, rewards in zip(table, episodes, strict=True):
        row[: len(rewards)] = rewards
        grown = np.cumsum(rewards)
        sums.plot(np.arange(1, len(grown) + 1), grown, color=BLUE, lw=1, alpha=0.5)
    sums.axhline(0, color=GREY, lw=0.8)
    sums.set(xlabel="step", ylabel="sum of rewards", title="An episode a line")
    most = max(float(np.nanmax(np.abs(table))), 1e-9)
    picture = steps.imshow(table, cmap="RdYlGn", vmin=-most, vmax=most, aspect="auto",
                           interpolation="nearest")  # fmt: skip
    steps.set(xlabel="step", ylabel="episode", title="Reward of each step")
    figure.colorbar(picture, ax=steps)
    figure.suptitle(title, fontsize=11)
    return figure
