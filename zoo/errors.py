"""Errors that a user can cause, and can put right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ZooError(ValueError):
    """A wrong input from outside: a recipe, a file, an argument.

    The message says what was given, what was expected and what to do. Commands print it as one line
    and exit with code 2; from Python it is an ordinary :class:`ValueError`.
    """


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """An argument that is a word must be one of these.

    Raises:
        ZooError: it is another.
    """
    known = list(choices)
    if value not in known:
        raise ZooError(f"{name} is {shown(value)}, expected one of {', '.join(known)}")


def shown(value: object) -> str:
    """A given value as a message of one line shows it: cut if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def suggest(key: str, known: Iterable[str]) -> str:
    """``did you mean ...?``, or all that is known."""
    known = sorted(set(known))
    close = get_close_matches(key, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"expected one of {', '.join(known)}"
