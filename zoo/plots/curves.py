"""Learning curves from a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.plots.style import BLUE, GREY, ORANGE, new_figure, plain


def learning_curve(
    table: Mapping[str, Sequence[float | None]], title: str, monitor: str, mode: str
) -> Figure:
    """Loss (left) and the monitored metric (right) over the steps.

    Args:
        table: columns of the metrics table, None where a row has no value; needs ``step``.
        title: of the figure.
        monitor: name of the metric that picks the best checkpoint; mode: "max" or "min" of it.
    """
    figure = new_figure(10, 3.9)
    losses, metric = figure.subplots(1, 2)

    def line(axes, column: str, **style) -> None:
        pairs = [
            (step, value)
            for step, value in zip(table["step"], table.get(column, ()), strict=False)
            if value is not None
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), **style)

    line(losses, "train/loss_step", color=GREY, alpha=0.55, linewidth=1, label="training, one step")
    line(losses, "train/loss", color=BLUE, linewidth=1.8, label="training, epoch mean")
    line(losses, "val/loss", color=ORANGE, linewidth=1.8, label="validation")
    losses.set(xlabel="step", ylabel="loss", title="Loss")
    losses.set_ylim(bottom=min(0, losses.get_ylim()[0]))
    line(metric, monitor, color=ORANGE, linewidth=1.8, marker="o", markersize=3)
    measured = [
        (value, step)
        for step, value in zip(table["step"], table.get(monitor, ()), strict=False)
        if value is not None
    ]
    title = monitor
    if measured:
        value, step = (max if mode == "max" else min)(measured, key=lambda pair: pair[0])
        metric.plot([step], [value], "o", color=BLUE, markersize=6)
        title = f"{monitor}: best {value:.4g} at step {step:.0f}"
    metric.set(xlabel="step", ylabel=monitor, title=title)
    if losses.get_lines():
        losses.legend(frameon=False)
    for axes in (losses, metric):
        plain(axes).xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.suptitle(title, fontsize=11)
    return figure
