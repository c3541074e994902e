"""Pictures with questions and answers about them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import GREEN, RED, new_figure

#: Question, answer, and what it should have been (None: not known).
Exchange = tuple[str, str, str | None]


def conversations(rows: Sequence[tuple[np.ndarray, Sequence[Exchange]]], title: str) -> Figure:
    """Pictures in columns, below each what was asked and answered; wrong answers in red.

    Args:
        rows: picture uint8 [H, W, 3] and the exchanges about it.
        title: of the figure.
    """
    columns = min(4, len(rows))
    lines = max(len(exchanges) for _, exchanges in rows)
    height = -(-len(rows) // columns)
    side, below = 2.4, 0.2 + 0.19 * lines  # inches of a picture and of its text
    figure = new_figure((side + 0.3) * columns, (side + below) * height + 0.45)
    figure.set_layout_engine("none")  # which would leave the text out of account
    grid = figure.subplots(
        height, columns, squeeze=False,
        gridspec_kw=dict(
            left=0.15 / (side + 0.3) / columns, right=1 - 0.15 / (side + 0.3) / columns,
            top=1 - 0.45 / figure.get_figheight(), bottom=below / figure.get_figheight(),
            hspace=below / side, wspace=0.3 / side,
        ),
    ).ravel()  # fmt: skip
    for axes in grid:
        axes.axis("off")
    for axes, (picture, exchanges) in zip(grid, rows, strict=False):
        axes.imshow(picture, interpolation="nearest")
        for place, (question, answer, truth) in enumerate(exchanges):
            right = truth is None or answer == truth
            text = f"{question}  {answer}" + ("" if right else f"  (not {truth})")
            axes.annotate(
                text, (0, 0), (0, -6 - 13 * place), xycoords="axes fraction",
                textcoords="offset points", va="top", fontsize=8,
                color="black" if truth is None else GREEN if right else RED,
            )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    return figure
