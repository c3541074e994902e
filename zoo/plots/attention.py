"""How a converted layer's weights compare with softmax's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.plots.style import BLUE, ORANGE, new_figure, plain


def entropy_by_layer(entropies: Mapping[str, Sequence[float]]) -> Figure:
    """Mean entropy of each layer's weights, a line for each kind of attention."""
    figure = new_figure(6, 3.6)
    axes = plain(figure.subplots())
    for (name, values), colour in zip(entropies.items(), (ORANGE, BLUE), strict=False):
        axes.plot(range(len(values)), values, "o-", color=colour, label=name)
    axes.set(xlabel="layer", ylabel="entropy, nats", title="Spread of the weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def weights_by_score(points: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Weights of keys against q·k, for each kind of attention (scores, weights)."""
    figure = new_figure(6, 3.6)
    axes = plain(figure.subplots())
    for (name, (scores, weights)), colour in zip(points.items(), (ORANGE, BLUE), strict=False):
        axes.plot(scores, weights, ".", color=colour, label=name, alpha=0.6)
    axes.set(xlabel="q·k, scaled", ylabel="weight", title="Weights of the last query")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure
