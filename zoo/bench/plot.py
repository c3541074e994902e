"""Time against length, and the shares of a model's time."""

from __future__ import annotations

from pathlib import Path

from zoo.bench.models import ModelRow
from zoo.bench.rows import Growth


def plot_growth(growths: list[Growth], folder: Path, device: str, title: str) -> Path:
    """Write ``growth-<device>.png``: both axes logarithmic, the dashed lines are linear growth."""
    from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, plain

    figure = new_figure(6.5, 4.5)
    axes = plain(figure.subplots())
    for growth, color in zip(growths, (BLUE, ORANGE, GREEN, RED, GREY), strict=False):
        milliseconds = [1e3 * s for s in growth.seconds]
        label = f"{growth.op}, {growth.direction} ({growth.case}): exponent {growth.exponent:.2f}"
        axes.plot(growth.lengths, milliseconds, "o-", color=color, markersize=4, label=label)
        linear = [milliseconds[-1] * n / growth.lengths[-1] for n in growth.lengths]
        axes.plot(growth.lengths, linear, "--", color=GREY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="length", ylabel="time [ms]", title=title)
    axes.legend(frameon=False, fontsize=8)
    path = folder / f"growth-{device}.png"
    figure.savefig(path)
    return path


def plot_models(rows: list[ModelRow], folder: Path, device: str, title: str) -> Path:
    """Write ``models-<device>.png``: a bar for each model, cut into the shares of its time."""
    from matplotlib import colormaps

    from zoo.plots.style import GREY, new_figure, plain

    figure = new_figure(8.0, 1.4 + 0.55 * len(rows))
    axes = plain(figure.subplots())
    groups = dict.fromkeys(name for row in rows for name in row.shares if name != "other")
    colors = {name: colormaps["tab20"](i % 20) for i, name in enumerate(groups)} | {"other": GREY}
    names = [f"{row.model},\n{row.what}" for row in rows]
    left = [0.0] * len(rows)
    for group, color in colors.items():
        widths = [row.shares.get(group, 0.0) for row in rows]
        axes.barh(names, widths, left=left, height=0.6, color=color, label=group)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="share of the time", title=title)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path = folder / f"models-{device}.png"
    figure.savefig(path)
    return path
