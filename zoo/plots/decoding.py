"""Pictures of language models and of what became of drafted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, plain, shorten


def loss_by_position(losses: Tensor) -> Figure:
    """Loss of the next token ``[T]`` against the length of its context."""
    figure = new_figure(6, 3.6)
    axes = plain(figure.subplots())
    axes.plot(np.arange(1, len(losses) + 1), losses.float().numpy(), color=BLUE, linewidth=1.4)
    axes.set(xlabel="tokens before", ylabel="loss, nats", title="Loss along the text")
    axes.set_ylim(bottom=0)
    return figure


def head_accuracy(table: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Top-1 accuracy of draft heads by how far ahead they look.

    Args:
        table: curve -> accuracy of head 0, 1, ...
        title: of the figure.
    """
    figure = new_figure(5.2, 3.6)
    axes = plain(figure.subplots())
    for (name, values), color in zip(table.items(), (BLUE, ORANGE, GREEN, GREY), strict=False):
        axes.plot(range(len(values)), values, "o-", color=color, label=name)
    axes.set(xlabel="head", ylabel="accuracy", title=title, ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def acceptance(
    by_depth: Mapping[int, float], by_rank: Mapping[tuple[int, int], float], title: str
) -> Figure:
    """Where a tree was accepted.

    Args:
        by_depth: depth -> share of the times a node of that depth was offered.
        by_rank: (depth, rank) -> share of all accepted nodes of that depth.
        title: of the figure.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    plain(left).bar(list(by_depth), list(by_depth.values()), color=BLUE)
    left.set(xlabel="depth", ylabel="accepted when offered", title="By depth", ylim=(0, 1))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    depths = sorted({depth for depth, _ in by_rank}) or [1]
    ranks = max((rank for _, rank in by_rank), default=0) + 1
    grid = np.zeros((len(depths), ranks))
    for (depth, rank), share in by_rank.items():
        grid[depths.index(depth), rank] = share
    picture = right.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    right.set(xlabel="rank among siblings", ylabel="depth", title="Rank of the accepted node")
    right.set_yticks(range(len(depths)), depths)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, ax=right, label="share")
    figure.suptitle(title, fontsize=11)
    return figure


def method_comparison(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """Tokens per step and speed of several methods, against plain decoding.

    Args:
        rows: (method, tokens per step, speed relative to plain decoding).
    """
    figure = new_figure(9, 0.9 + 0.42 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [shorten(name, 24) for name, _, _ in rows]
    for axes, values, label, color in (
        (left, [row[1] for row in rows], "tokens per step", BLUE),
        (right, [row[2] for row in rows], "speed, plain decoding = 1", ORANGE),
    ):
        bars = plain(axes).barh(names, values, color=color, height=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.set(xlabel=label, xlim=(0, 1.15 * max(values)))
    left.invert_yaxis()
    return figure
