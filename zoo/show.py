"""What commands print: lines and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from torch import nn

LONGEST_UNBROKEN = 30


def say(line: str) -> None:
    """One line for the user."""
    Console(soft_wrap=True, highlight=False).print(line, markup=False)


def count(model: nn.Module) -> str:
    """Number of parameters, short: ``22.9 M``."""
    return short_count(sum(p.numel() for p in model.parameters()))


def short_count(number: int) -> str:
    """``22893448`` -> ``22.9 M``."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            value = number / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f}{unit}"
    return str(number)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()
) -> None:
    """A table; ``right`` names the columns that are flush right."""
    cells = [[str(value) for value in row] for row in rows]
    table = Table(header_style="", box=SIMPLE_HEAD, show_edge=False)
    for place, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=max((len(row[place]) for row in cells), default=0) <= LONGEST_UNBROKEN,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(Text, row))  # a file's name is no markup
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)
    console.print()


def print_metrics(title: str, metrics: Mapping[str, float], where: Path) -> None:
    """The result of a run; accuracies in percent."""
    rows = []
    for name, value in sorted(metrics.items()):
        percent = "acc" in name.rpartition("/")[2]
        rows.append((name, f"{value:.2%}" if percent else f"{value:.4f}"))
    print_table(title, ("metric", "value"), rows, right=("value",))
    say(f"everything is in {where}")


def progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a bar on a terminal while they are gone through; one alone needs none."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.progress import track

    return track(items, what, console=Console(stderr=True), transient=True)
