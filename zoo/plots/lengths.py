"""Cost of decoding against the length of the context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, plain

COLOURS = (GREY, BLUE, ORANGE, GREEN)
Lines = Mapping[str, Sequence[float]]


def cost_by_length(
    lengths: Sequence[int],
    milliseconds: Lines,
    mebibytes: Lines,
    bound_lengths: Sequence[int],
    speedups: Lines,
    savings: Lines,
    published: Mapping[str, tuple[float, float]],
) -> Figure:
    """Measured time of a token and size of the cache; speed-up and memory saved by count.

    Args:
        lengths: of the contexts that were measured.
        milliseconds, mebibytes: model -> values at each length.
        bound_lengths, speedups, savings: model -> largest possible speed-up, and share of the
            memory saved, at each of these lengths. ``"NAME, ..."`` is NAME's colour, dashed.
        published: model -> speed-up and saving that its authors measured at the last length.
    """
    figure = new_figure(9.6, 6.4)
    (time, cache), (speed, memory) = figure.subplots(2, 2)
    for axes, values in ((time, milliseconds), (cache, mebibytes)):
        _draw(axes, lengths, values, COLOURS, "o")
        axes.set(xlabel="tokens before", xscale="log", yscale="log", ylim=_decades(values))
    time.set(ylabel="ms", title="Time of a token, measured")
    cache.set(ylabel="MiB", title="Cache, measured")
    for axes, values, place in ((speed, speedups, 0), (memory, savings, 1)):
        _draw(axes, bound_lengths, values, COLOURS[1:], None)
        for number, (name, points) in enumerate(published.items()):
            axes.plot(
                bound_lengths[-1], points[place], "*", markersize=11, clip_on=False,
                color=COLOURS[1 + number], label=f"{name}, published",
            )  # fmt: skip
        axes.set(xlabel="tokens before", xscale="log")
        axes.set_ylim(bottom=0)
    speed.set(ylabel="times", title="Full size: at most faster, by bytes moved")
    memory.set(ylabel="share", title="Full size: memory saved, by count")
    for axes in (time, cache, speed, memory):
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=8)
    return figure


def _decades(lines: Lines) -> tuple[float, float]:
    """The powers of ten around all values."""
    values = [value for line in lines.values() for value in line]
    return 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))


def _draw(
    axes: Axes, x: Sequence[float], lines: Lines, colours: Sequence[str], marker: str | None
) -> None:
    plain(axes)
    names = list(dict.fromkeys(name.partition(",")[0] for name in lines))
    for name, values in lines.items():
        first, _, variant = name.partition(",")
        axes.plot(
            x, values, color=colours[names.index(first)], linestyle="--" if variant else "-",
            marker=marker, markersize=4, label=name,
        )  # fmt: skip
