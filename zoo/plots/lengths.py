"""Cost of decoding against the length of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, plain

COLOURS = (GREY, BLUE, ORANGE, GREEN)


def cost_by_length(
    lengths: Sequence[int],
    milliseconds: Mapping[str, Sequence[float]],
    mebibytes: Mapping[str, Sequence[float]],
    bound_lengths: Sequence[int],
    bounds: Mapping[str, Sequence[float]],
    title: str,
) -> Figure:
    """Measured time of a token, measured size of the cache, and how much faster it can get.

    Args:
        lengths: of the contexts that were measured.
        milliseconds, mebibytes: model -> values at each length.
        bound_lengths, bounds: model -> largest possible speed-up at each of these lengths.
        title: of the figure.
    """
    figure = new_figure(12, 3.8)
    time, memory, bound = figure.subplots(1, 3)
    for (name, values), color in zip(milliseconds.items(), COLOURS, strict=False):
        plain(time).plot(lengths, values, "o-", color=color, label=name, markersize=4)
        plain(memory).plot(lengths, mebibytes[name], "o-", color=color, label=name, markersize=4)
    for (name, values), color in zip(bounds.items(), COLOURS[1:], strict=False):
        plain(bound).plot(bound_lengths, values, color=color, label=name)
    time.set(xlabel="tokens before", ylabel="ms", title="Time of a token", xscale="log")
    memory.set(xlabel="tokens before", ylabel="MiB", title="Cache", xscale="log", yscale="log")
    bound.set(xlabel="tokens before", ylabel="times", title="At most faster, full size, by bytes")
    time.set_ylim(bottom=0)
    bound.set_ylim(bottom=0)
    for axes in (time, memory, bound):
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
