"""Figure of a proof: what was measured, beside the thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from zoo.plots.style import BLUE, GREEN, RED, new_figure, plain


def measured_bars(title: str, rows: Sequence[tuple[str, float, str, float, bool]]) -> Figure:
    """One row per inequality: a bar for the measured side, a line for its threshold.

    Args:
        title: the claim.
        rows: (measured expression, its value, relation, threshold, whether it holds).
    """
    figure = new_figure(9, 1.1 + 0.95 * len(rows))
    grid = figure.subplots(len(rows), 1, squeeze=False)
    for axes, (name, value, relation, threshold, holds) in zip(grid.flat, rows, strict=True):
        plain(axes).grid(False)
        axes.barh([0], [value], color=BLUE, height=0.5)
        axes.axvline(threshold, color=GREEN if holds else RED, linewidth=2)
        reach = max(abs(value), abs(threshold), 1e-12)
        low = -1.15 * reach if min(value, threshold) < 0 else 0
        axes.set(xlim=(low, 1.15 * reach), yticks=[], ylim=(-0.5, 0.5))
        verdict = "holds" if holds else "FAILS"
        axes.set_title(
            f"{name} = {value:.6g}   must be {relation} {threshold:.6g}: {verdict}",
            loc="left",
            fontsize=9.5,
            color="black" if holds else RED,
        )
    figure.suptitle(title, fontsize=11, wrap=True)
    return figure
