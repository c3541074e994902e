"""``python -m zoo.bench``: time the ops against their peers and against what the machine can do."""

from __future__ import annotations

from zoo.bench.arguments import read_arguments
from zoo.command import command

__all__ = ["main"]


@command
def main(argv: list[str]) -> int:
    """Measure, print, write."""
    arguments = read_arguments(argv)
    from zoo.bench.run import run

    return run(arguments)
