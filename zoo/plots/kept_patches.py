"""Pictures of the patches that a network kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import new_figure, shorten


def kept_patches(
    rows: Sequence[tuple[np.ndarray, Sequence[np.ndarray], str]], title: str
) -> Figure:
    """One row per picture: the whole, then what is left each time; what is gone is dark.

    Args:
        rows: picture uint8 [H, W, 3], maps bool [h, w] in order, and what stands below the last.
        title: of the whole figure.
    """
    columns = 1 + max(len(maps) for _, maps, _ in rows)
    figure = new_figure(1.9 * columns, 2.05 * len(rows) + 0.7)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (picture, maps, text) in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].imshow(picture, interpolation="nearest")
        for axes, kept in zip(axes_row[1:], maps, strict=False):
            axes.imshow(darken(picture, kept), interpolation="nearest")
            axes.set_title(f"{kept.sum()} of {kept.size} patches", fontsize=8, pad=3)
        axes_row[-1].set_xlabel(shorten(text, 34), fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def darken(picture: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] whose patches outside ``kept`` [h, w] are dimmed to a bluish dark."""
    height, width = picture.shape[:2]
    rows = np.arange(height) * kept.shape[0] // height
    columns = np.arange(width) * kept.shape[1] // width
    gone = ~kept[rows[:, None], columns]
    dark = picture * 0.18 + np.array([20, 24, 52])
    return np.where(gone[..., None], dark, picture).astype(np.uint8)
