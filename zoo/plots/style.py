"""What all figures share."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#3568a8", "#d9822b", "#3a8f4d", "#c23b3b", "#8a8f98"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, which can be saved as it is."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> Axes:
    """Only the axes that are read, and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def shorten(name: str, length: int) -> str:
    """``name``, with an ellipsis at the end where it is too long."""
    return name if len(name) <= length else name[: length - 1] + "…"


def rendered(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
