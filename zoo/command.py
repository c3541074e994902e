"""How a command ends: a user's error as one readable line and exit code 2."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

from zoo.atomic import is_full
from zoo.errors import ZooError


class Interrupted(Exception):
    """The user stopped the command; the message says how to go on."""


def command(run: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Make a command's main function: arguments (the command line's by default) -> exit code.

    A :class:`ZooError` or a full disk becomes one line on stderr and exit code 2; with
    ``ZOO_DEBUG=1`` the error's traceback is shown. Ctrl-C ends with exit code 130. Anything else is
    a defect of the program and keeps its traceback.
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return run(list(sys.argv[1:] if argv is None else argv)) or 0
        except ZooError as error:
            if os.environ.get("ZOO_DEBUG") == "1":
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except OSError as error:
            if not is_full(error):
                raise
            print(f"error: {full_disk(error)}: free some, or choose another", file=sys.stderr)
            return 2
        except (Interrupted, KeyboardInterrupt) as error:
            print(f"\n{one_line(error) or 'stopped'}", file=sys.stderr)
            return 130

    return main


def full_disk(error: OSError) -> str:
    """What is full, with the file that did not fit where it is known."""
    place = f" for {error.filename}" if error.filename else ""
    return f"no space is left on the disk{place}"


def one_line(error: BaseException) -> str:
    """The message of an error; that of a data loader's process without its traceback."""
    message = str(error)
    if message.startswith("Caught ") and "Traceback" in message:
        message = message.rpartition(f"{ZooError.__name__}: ")[2]
    return " ".join(message.split())
