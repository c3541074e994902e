"""``python -m zoo.generate --target DIR-or-hub-id --method METHOD "prompt"``.

Prints the text while it is made, then what the method did, against plain decoding measured in the
same run. ``--compare all`` measures every method that the given heads and draft model allow.
"""

from __future__ import annotations

from zoo.command import command
from zoo.generate.arguments import read_arguments

__all__ = ["main"]


@command
def main(argv: list[str]) -> int:
    """Generate, or compare."""
    arguments = read_arguments(argv)
    from zoo.generate.run import run

    return run(arguments)
