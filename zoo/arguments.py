"""What people give on a command line or in a recipe: values, folders, and which one was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError


@contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Say which setting was wrong when what is built from it refuses it, whoever wrote that.

    Raises:
        ZooError: instead of Python's own errors, and those that torch and timm raise for a size
            below 0 or a word that they do not know.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ZooError(f"{setting}: {error}") from error


def read_value(option: str, text: str) -> Any:
    """The value of ``NAME=VALUE``, written as in a recipe; messages show ``option``."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ZooError(
            f"{option}: the value cannot be read as YAML, expected such as 3, true or [1, 2]"
        ) from error


def make_folder(option: str, folder: Path) -> None:
    """Make the folder of an output, before anything is computed in vain.

    Raises:
        ZooError: it cannot be made; the message names the ``option`` that asked for it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(
            f"{option}: the folder {folder} cannot be made: {error.strerror}; choose another"
        ) from None
