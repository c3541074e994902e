"""Time against length."""

from __future__ import annotations

from pathlib import Path

from zoo.bench.rows import Growth


def plot_growth(growths: list[Growth], folder: Path, device: str) -> Path:
    """Write ``growth.png``: both axes logarithmic, the dashed lines are linear growth."""
    from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, plain

    figure = new_figure(6.5, 4.5)
    axes = plain(figure.subplots())
    for growth, color in zip(growths, (BLUE, ORANGE, GREEN, RED), strict=False):
        milliseconds = [1e3 * s for s in growth.seconds]
        label = f"{growth.op}, {growth.direction} ({growth.case}): exponent {growth.exponent:.2f}"
        axes.plot(growth.lengths, milliseconds, "o-", color=color, markersize=4, label=label)
        linear = [milliseconds[-1] * n / growth.lengths[-1] for n in growth.lengths]
        axes.plot(growth.lengths, linear, "--", color=GREY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="length", ylabel="time [ms]", title=device)
    axes.legend(frameon=False, fontsize=8)
    path = folder / "growth.png"
    figure.savefig(path)
    return path
