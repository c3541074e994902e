"""Figures of classifiers: confusion matrix, grid of predictions, one annotated picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from zoo.plots.style import BLUE, GREEN, GREY, RED, new_figure, plain, shorten

#: Above this number of classes neither names nor counts would be readable.
MOST_NAMED_CLASSES = 40
MOST_COUNTED_CLASSES = 20


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Rows: true class, columns: predicted class; coloured by the share of the row.

    Args:
        counts: [classes, classes], how often each pair came.
        names: of the classes.
    """
    classes = len(counts)
    side = float(np.clip(3.5 + 0.42 * classes, 5, 14))
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if classes <= MOST_NAMED_CLASSES:
        labels = [shorten(name, 18) for name in names]
        upright = max(map(len, labels)) <= 3
        axes.set_xticks(range(classes), labels, rotation=0 if upright else 90)
        axes.set_yticks(range(classes), labels)
    if classes <= MOST_COUNTED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8
                )
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(
        f"Confusion matrix: {int(counts.trace()):,} of {int(counts.sum()):,} right ({accuracy:.1%})"
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


def prediction_grid(samples: Sequence[tuple[np.ndarray, str, str]], title: str) -> Figure:
    """Pictures with prediction and truth; wrong ones framed in red.

    Args:
        samples: (picture [H, W, 3], true name, predicted name).
        title: of the whole figure.
    """
    columns = 8
    rows = max(1, -(-len(samples) // columns))
    figure = new_figure(1.35 * columns, 1.75 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (picture, truth, guess) in zip(grid.flat, samples, strict=False):
        axes.axis("on")
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[])
        colour = GREEN if truth == guess else RED
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2)
        axes.set_title(shorten(guess, 16), fontsize=9, color=colour, pad=3)
        axes.set_xlabel(f"true: {shorten(truth, 14)}", fontsize=8, labelpad=2)
    figure.suptitle(f"{title}\nabove each: prediction, below: truth", fontsize=11)
    return figure


def annotated_picture(picture: Image.Image, top: Sequence[tuple[str, float]]) -> Figure:
    """A picture beside bars of its most likely classes.

    Args:
        picture: any size.
        top: (name, probability), most likely first.
    """
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    left.imshow(picture)
    left.axis("off")
    plain(right).grid(False)
    shown = [shorten(name, 28) for name, _ in top]
    places = range(len(top))
    right.barh(places, [p for _, p in top], color=[BLUE] + [GREY] * (len(top) - 1), height=0.62)
    for place, (_, probability) in enumerate(top):
        right.text(probability + 0.015, place, f"{probability:.1%}", va="center", fontsize=9)
    right.set_yticks(places, shown)
    right.invert_yaxis()
    right.set(xlim=(0, 1.16), xticks=[0, 0.5, 1], xlabel="probability")
    right.set_title(f"prediction: {shown[0]}", loc="left", fontsize=11)
    return figure
