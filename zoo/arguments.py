"""What people give on a command line or in a recipe: values, folders, and which one was wrong."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError

#: What is raised for an argument of the wrong type, value or length, or for a size of 0.
_REFUSALS = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError)


@contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Say which setting was wrong when what is built from it refuses it, whoever wrote that.

    Raises:
        ZooError: instead of Python's own errors, and those that torch and timm raise for a size
            below 0 or a word that they do not know.
    """
    try:
        yield
    except _REFUSALS as error:
        raise ZooError(f"{setting}: {error}") from error


def read_value(option: str, text: str) -> Any:
    """The value of ``NAME=VALUE``, written as in a recipe; messages show ``option``."""
    try:
        return load_yaml(text)
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


def new_folder(option: str, folder: Path) -> Path:
    """Make a folder that is nobody else's: this one, or one with -2, -3, ... behind its name.

    Raises:
        ZooError: see :func:`make_folder`.
    """
    make_folder(option, folder.parent)
    number, path = 1, folder
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise ZooError(
                f"{option}: the folder {path} cannot be made: {error.strerror}; choose another"
            ) from None
        else:
            return path


def allow_class_option(parser: argparse.ArgumentParser) -> None:
    """``--allow-class``, for commands that read the recipe in a checkpoint; see zoo.trust."""
    parser.add_argument(
        "--allow-class",
        action="append",
        default=[],
        metavar="CLASS",
        help="let the recipe in the checkpoint name this class, such as my_package.MyData, which "
        "runs its code; may be given several times",
    )


# YAML, read and written by the same rules: 1e-3 is a number, a date and 1:30 are text, and a key
# stands once in its mapping.

_FLOAT = re.compile(
    r"""(?:[-+]?(?:
        [0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.(?:inf|Inf|INF)
    )|\.(?:nan|NaN|NAN))\Z""",
    re.VERBOSE,
)
_INT = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)\Z")
_NUMBERS = {"tag:yaml.org,2002:float": _FLOAT, "tag:yaml.org,2002:int": _INT}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        letter: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in _NUMBERS and tag != "tag:yaml.org,2002:timestamp"
        ]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in _NUMBERS.items():
        _class.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
# defaults of Lightning's classes: members of an enumeration of words, paths
_Dumper.add_multi_representer(str, lambda dumper, word: dumper.represent_str(str.__str__(word)))
_Dumper.add_multi_representer(os.PathLike, lambda dumper, p: dumper.represent_str(os.fspath(p)))


def load_yaml(text: str) -> Any:
    """A value of a recipe from its text; raises ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)


class Word(str):
    """A text that looks like something else, such as "1e3" or "[a]", and was read as a text.

    jsonargparse reads texts of a setting of any type once more, but not those of another class.
    """


def with_words(value: Any) -> Any:
    """What was read, each text as a :class:`Word` that would be another value if read again."""
    if isinstance(value, dict):
        return {key: with_words(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_words(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        return value if load_yaml(value) == value else Word(value)
    except yaml.YAMLError:
        return value


def dump_yaml(value: Any) -> str:
    """The text of a value, such that :func:`load_yaml` gives the same value again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
