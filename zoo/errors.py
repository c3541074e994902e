"""Errors that a user can cause, and can put right."""

from __future__ import annotations


class ZooError(ValueError):
    """A wrong input from outside: a recipe, a file, an argument.

    The message says what was given, what was expected and what to do. Commands print it as one line
    and exit with code 2; from Python it is an ordinary :class:`ValueError`.
    """
