"""What a student's layers have learnt of its teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.plots.style import BLUE, new_figure, plain


def error_by_layer(errors: Sequence[float]) -> Figure:
    """Mean squared error of each layer's heads against the teacher's."""
    figure = new_figure(6, 3.6)
    axes = plain(figure.subplots())
    axes.bar(range(len(errors)), errors, color=BLUE, width=0.7)
    axes.set(xlabel="layer", ylabel="mean squared error", title="Layers against the teacher's")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
