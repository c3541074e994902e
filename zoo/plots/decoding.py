"""Pictures of language models and of what became of drafted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, plain, shorten


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


def tree_figure(parents: Sequence[int], shares: Mapping[int, float], path: Sequence[int]) -> Figure:
    """A candidate tree, its root on top.

    Args:
        parents: of each node, a node comes after its parent; -1 for the root.
        shares: of the passes that kept a node; 0 by default.
        path: nodes below the root that are drawn in red.
    """
    depths = [0] * len(parents)
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], start=1):
        depths[node] = depths[parent] + 1
        children[parent].append(node)
    places = [0.0] * len(parents)
    leaves = iter(range(len(parents)))

    def put(node: int) -> float:
        below = [put(child) for child in children[node]]
        places[node] = sum(below) / len(below) if below else float(next(leaves))
        return places[node]

    put(0)
    figure = new_figure(11, 4.2)
    axes = figure.subplots()
    for node, parent in enumerate(parents[1:], start=1):
        red = node in path
        axes.plot(
            [places[parent], places[node]], [depths[parent], depths[node]], zorder=1 + red,
            color=RED if red else GREY, linewidth=2.2 if red else 0.8,
        )  # fmt: skip
    kept = [1.0, *(shares.get(node, 0.0) for node in range(1, len(parents)))]
    dots = axes.scatter(
        places, depths, c=kept, s=60, cmap="Blues", vmin=0, vmax=1, edgecolors=GREY, zorder=3
    )
    axes.invert_yaxis()
    axes.set(ylabel="depth", xticks=[])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    figure.colorbar(dots, ax=axes, label="share of passes", fraction=0.025, pad=0.01)
    return figure
