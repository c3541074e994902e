"""Rows of pictures side by side: input, truth, prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zoo.plots.style import new_figure

#: Name -> picture: uint8 [H, W, 3], or a float map [H, W] that is coloured by its own range.
Panels = Mapping[str, np.ndarray]

#: Of labels from 1 on, [10, 3] in 0..255; red first: it stands out of most pictures.
COLOURS = np.roll(np.array(colormaps["tab10"].colors) * 255, -3, axis=0)


def panel_rows(
    rows: Sequence[Panels], title: str, legend: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """One row per sample, its panels named above the first row.

    Args:
        rows: panels of each sample, all with the same names.
        title: of the figure.
        legend: names of colours (in 0..255), shown below.
    """
    names = list(rows[0])
    side = 3.6 if len(rows) == 1 else 2.3
    figure = new_figure(side * len(names), side * len(rows) + 0.7)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for row, axes_row in zip(rows, grid, strict=True):
        for name, axes in zip(names, axes_row, strict=True):
            axes.axis("off")
            picture = row[name]
            shown = axes.imshow(picture, cmap="viridis", interpolation="nearest")
            if picture.ndim == 2:
                bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
                bar.ax.tick_params(labelsize=6)
                bar.outline.set_visible(False)
    for name, axes in zip(names, grid[0], strict=True):
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=11)
    if legend:
        patches = [Patch(color=colour / 255, label=name) for name, colour in legend.items()]
        columns = max(1, 3 * len(names) // 2)
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def colour_of(label: int) -> np.ndarray:
    """The colour of a label from 1 on, [3] in 0..255."""
    return COLOURS[(label - 1) % len(COLOURS)]


def overlay(picture: np.ndarray, labels: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """Colour a picture by its labels; class 0 keeps the picture.

    Args:
        picture: uint8 [H, W, 3].
        labels: [H, W].
        strength: of the colour.
    """
    grey = picture.mean(axis=-1, keepdims=True)  # else the picture's own colours would mix in
    painted = grey * (1 - strength) + COLOURS[(labels - 1) % len(COLOURS)] * strength
    return np.where((labels > 0)[..., None], painted, picture).astype(np.uint8)
