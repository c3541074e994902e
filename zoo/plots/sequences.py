"""A classified sequence: what it looks like, its classes, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from zoo.plots.style import BLUE, GREY, new_figure, plain, shorten


def classified_sequence(
    picture: np.ndarray,
    top: Sequence[tuple[str, float]],
    course: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """A sequence as a picture beside bars of its most likely classes.

    Args:
        picture: uint8 [H, W, 3]; where there is a course, a column a step.
        top: (name, probability), most likely first.
        course: probability of a class after each step [L], by its name; drawn below the picture.
    """
    figure = new_figure(9, 3.6 if course is None else 5.0)
    if course is None:
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.6, 1))
        left, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        right = figure.add_subplot(grid[:, 1])
        plain(below)
        for number, (name, values) in enumerate(course.items()):
            colour = BLUE if number == 0 else None
            steps = np.arange(1, len(values) + 1)
            below.plot(steps, values, color=colour, lw=2 if number == 0 else 1, label=name)
        below.set(ylim=(0, 1.02), xlim=(0, picture.shape[1]), xlabel="steps heard")
        below.set_ylabel("probability")
        below.legend(fontsize=8, frameon=False)
    left.imshow(picture, aspect="equal" if course is None else "auto", interpolation="nearest")
    left.axis("off")
    plain(right).grid(False)
    names = [shorten(name, 28) for name, _ in top]
    places = range(len(top))
    colours = [BLUE] + [GREY] * (len(top) - 1)
    right.barh(places, [p for _, p in top], color=colours, height=0.62)
    for place, (_, probability) in enumerate(top):
        right.text(probability + 0.015, place, f"{probability:.1%}", va="center", fontsize=9)
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set(xlim=(0, 1.16), xticks=[0, 0.5, 1], xlabel="probability")
    right.set_title(f"prediction: {names[0]}", loc="left", fontsize=11)
    return figure
