"""Figure of a claim: curves and pictures of the mechanism beside those of its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import wrap
from typing import Literal

import numpy as np
from matplotlib.axes import Axes as MatplotlibAxes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullLocator

from zoo.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, plain

#: Of lines in the order of the measurements: the mechanism first.
LINE_COLOURS = (BLUE, ORANGE, GREEN, RED, "#7b52ab", "#17909c", "#a0703c", "#d16ba5", "#4d4d4d")
#: Panels with curves beside each other, and rows of pictures.
ACROSS, ROWS = 3, 2
#: On a logarithmic axis, so many places are named.
_TICKS = 8
#: Inches of a figure, which is about as wide as a page.
WIDTH = 10.0


@dataclass(frozen=True)
class Axes:
    """What a panel of a figure shows; curves with equal axes are drawn into one panel.

    Args:
        title: of the panel.
        x, y: what the axes say, with units.
        log: which of them are logarithmic.
        plane: x and y are places in a plane, y downwards.
    """

    title: str
    x: str
    y: str
    log: Literal["", "x", "y", "xy"] = ""
    plane: bool = False


@dataclass(frozen=True)
class Curve:
    """Points of one line.

    Args:
        axes: where it is drawn.
        x, y: the points.
        line: its name; None: that of the measurement. Points of one line from several measurements
            are joined.
        style: joined points; points alone; an example, whose points are joined as they are given
            and drawn for the first seed alone; or something known beforehand (chance, an optimum),
            which is dashed.
    """

    axes: Axes
    x: Sequence[float]
    y: Sequence[float]
    line: str | None = None
    style: Literal["line", "points", "example", "known"] = "line"


#: Name -> picture: uint8 [H, W, 3], or a float map [H, W], which is drawn with a scale.
Pictures = Mapping[str, np.ndarray]


def claim_figure(
    title: str,
    curves: Mapping[str, Sequence[Sequence[Curve]]],
    pictures: Mapping[str, Sequence[Pictures]],
    show: Sequence[str] | None = None,
) -> Figure | None:
    """Panels with the curves of all measurements, and rows of their pictures.

    Args:
        title: the claim.
        curves: name of a measurement as it is shown -> for each seed its curves. Lines are means
            over seeds, the shaded area is their range.
        pictures: name -> rows. Pictures that are the same in all measurements are drawn once.
        show: names of pictures and titles of panels, in order; None: all.

    Returns:
        None if there is nothing to draw.
    """
    panels = _panels(curves, show)
    columns = _columns(pictures, show)
    if not panels and not columns:
        return None
    heights = []
    if panels:
        heights.append(2.7 * -(-len(panels) // ACROSS))
    if columns:
        rows = min(len(pictures) for _, pictures in columns)
        heights.append(rows * _height(columns) + 0.45)
    figure = new_figure(WIDTH, sum(heights) + 0.5)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if panels:
        _draw_panels(parts.pop(0), panels)
    if columns:
        _draw_pictures(parts.pop(0), columns)
    figure.suptitle(title, fontsize=11, wrap=True)
    return figure


Line = tuple[str, str, list[tuple[np.ndarray, np.ndarray]]]


def _panels(
    curves: Mapping[str, Sequence[Sequence[Curve]]], show: Sequence[str] | None
) -> dict[Axes, list[Line]]:
    """Axes -> (name, style, for each seed the points) of its lines."""
    found: dict[Axes, dict[tuple[str, str], dict[int, list[tuple[float, float]]]]] = {}
    for name, seeds in curves.items():
        for seed, drawn in enumerate(seeds):
            for curve in drawn:
                line = name if curve.line is None else curve.line
                lines = found.setdefault(curve.axes, {})
                points = lines.setdefault((line, curve.style), {}).setdefault(seed, [])
                new = list(zip(map(float, curve.x), map(float, curve.y), strict=True))
                if curve.line is None or not set(new) <= set(points):  # several may give the same
                    points += new
    panels: dict[Axes, list[Line]] = {}
    for axes in found:
        panels[axes] = []
        for (line, style), by_seed in found[axes].items():
            runs = []
            for points in by_seed.values():
                ordered = points if style in ("points", "example") else sorted(points)
                x, y = np.array(ordered, dtype=float).reshape(-1, 2).T
                runs.append((x, y))
            panels[axes].append((line, style, runs))
    if show is None:
        return panels
    order = {title: place for place, title in enumerate(show)}
    kept = sorted((axes for axes in panels if axes.title in order), key=lambda a: order[a.title])
    return {axes: panels[axes] for axes in kept}


def _draw_panels(figure: Figure | SubFigure, panels: Mapping[Axes, Sequence[Line]]) -> None:
    across = min(ACROSS, len(panels))
    grid = figure.subplots(-(-len(panels) // across), across, squeeze=False)
    names = [line for lines in panels.values() for line, style, _ in lines if style != "known"]
    colours = dict(zip(dict.fromkeys(names), LINE_COLOURS, strict=False))
    for place, (about, lines) in zip(grid.flat, panels.items(), strict=False):
        plain(place)
        dashes = cycle(("--", ":", "-."))
        for line, style, runs in sorted(lines, key=lambda line: line[1] == "known"):
            if style == "known":
                place.plot(
                    *runs[0],
                    color=GREY,
                    linestyle=next(dashes),
                    linewidth=1.3,
                    label=line,
                    zorder=1,
                )
            else:
                _draw_line(place, line, style, runs, colours.get(line, GREY))
        if about.plane:
            place.set_aspect("equal")
            place.invert_yaxis()
        else:
            place.legend(frameon=False, fontsize=8)
        place.set_xlabel(about.x, fontsize=9)
        place.set_ylabel(about.y, fontsize=9)
        place.set_title(about.title, fontsize=10)
        for axis, name in ((place.xaxis, "x"), (place.yaxis, "y")):
            if name not in about.log:
                axis.set_major_locator(MaxNLocator(5))
        if "x" in about.log:
            places = sorted({float(x) for _, _, runs in lines for xs, _ in runs for x in xs})
            place.set_xscale("log")
            if len(places) <= _TICKS:
                place.set_xticks(places, [f"{x:,.6g}" for x in places])
                place.xaxis.set_minor_locator(NullLocator())
        if "y" in about.log:
            place.set_yscale("log")
        place.tick_params(labelsize=8)
    for place in grid.flat[len(panels) :]:
        place.axis("off")


def _draw_line(
    place: MatplotlibAxes,
    line: str,
    style: str,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    colour: str,
) -> None:
    if style == "points":
        x, y = (np.concatenate(values) for values in zip(*runs, strict=True))
        place.plot(x, y, ".", color=colour, markersize=5, alpha=0.6, label=line)
        return
    if style == "example":
        place.plot(*runs[0], color=colour, linewidth=1.4, label=line)
        return
    few = {"marker": "o", "markersize": 3.5} if max(len(x) for x, _ in runs) <= 12 else {}
    if all(np.array_equal(x, runs[0][0]) for x, _ in runs):
        x, y = runs[0][0], np.stack([y for _, y in runs])
        if len(runs) > 1:
            place.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.18, linewidth=0)
        place.plot(x, y.mean(0), color=colour, linewidth=1.7, label=line, **few)
        return
    for number, (x, y) in enumerate(runs):  # the seeds were not measured at the same places
        label = line if number == 0 else None
        place.plot(x, y, color=colour, linewidth=1.1, alpha=0.8, label=label, **few)


Column = tuple[str, list[np.ndarray]]


def _columns(
    pictures: Mapping[str, Sequence[Pictures]], show: Sequence[str] | None
) -> list[Column]:
    """Title and pictures of each column: first what all measurements share."""
    drawn = {name: list(rows)[:ROWS] for name, rows in pictures.items() if rows}
    names = dict.fromkeys(name for rows in drawn.values() for name in rows[0])
    shared: list[Column] = []
    own: list[Column] = []
    for name in names if show is None else [name for name in show if name in names]:
        columns = {
            owner: [row[name] for row in rows] for owner, rows in drawn.items() if name in rows[0]
        }
        first = next(iter(columns.values()))
        if len(columns) == 1 and len(drawn) == 1:
            own.append((name, first))
        elif all(_equal(first, column) for column in columns.values()):
            shared.append((name, first))
        else:
            own += [(f"{owner}:\n{name}", column) for owner, column in columns.items()]
    return shared + own


def _height(columns: Sequence[Column]) -> float:
    """Inches of a row of pictures."""
    highest = 3.6 if len(columns) == 1 else 2.3
    return min(highest, 0.96 * WIDTH / sum(_widths(columns)))


def _widths(columns: Sequence[Column]) -> list[float]:
    """Width of each column, of pictures as high as 1."""
    return [max(p.shape[1] / p.shape[0] for p in pictures) for _, pictures in columns]


def _equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _draw_pictures(figure: Figure | SubFigure, columns: Sequence[Column]) -> None:
    rows = min(len(column) for _, column in columns)
    widths = _widths(columns)
    beside = max(0.0, 0.96 * WIDTH / _height(columns) - sum(widths)) / 2 + 1e-3
    grid = figure.subplots(
        rows, len(columns) + 2, squeeze=False, width_ratios=[beside, *widths, beside]
    )
    for place in grid.flat:
        place.axis("off")
    grid = grid[:, 1:-1]
    for number in range(rows):
        maps = [column[number] for _, column in columns if column[number].ndim == 2]
        low = min((float(np.nanmin(m)) for m in maps), default=0.0)
        high = max((float(np.nanmax(m)) for m in maps), default=1.0)
        shown = None
        for place, (title, column) in zip(grid[number], columns, strict=True):
            picture = column[number]
            if picture.ndim == 2:
                shown = place.imshow(picture, vmin=low, vmax=high, interpolation="nearest")
            else:
                place.imshow(picture, interpolation="antialiased")
            if number == 0:
                letters = int(13 * _height(columns) * picture.shape[1] / picture.shape[0])
                lines = [wrapped for line in title.split("\n") for wrapped in wrap(line, letters)]
                place.set_title("\n".join(lines), fontsize=9)
        if shown is not None:
            bar = figure.colorbar(shown, ax=list(grid[number]), fraction=0.02, pad=0.01)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
