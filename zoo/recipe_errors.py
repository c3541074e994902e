"""jsonargparse's nested error reports as one line: where, which key, what was expected."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pydoc import locate

from jsonargparse import ArgumentParser

from zoo.errors import shown, suggest
from zoo.recipes import GROUPS, split_options
from zoo.trust import how_to_allow

_KEY = re.compile(r'Parser key "([^"]+)":(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (\S+)")
_MISSING = re.compile(r"the following arguments are required: (.+)")
_EXPECTED = re.compile(r"Expected (?:an? )?(.+?)(?:[.] Got value: (.*))?$")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_WRONG_CLASS = re.compile(r"does not correspond to a subclass of (\S+)")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_GIVEN = re.compile(r"Given value: (.*)")


def keys_of(cls: type) -> list[str]:
    """Keys that a class takes in a recipe; those of its settings with a dot."""
    return ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)


def explain(report: str, recipe: str, overrides: Sequence[str], groups: dict[str, type]) -> str:
    """One line for a parse error.

    Args:
        report: jsonargparse's text.
        recipe: name of the recipe file, for the message.
        overrides: arguments of the command line; an error in one of these is said to be there.
        groups: top-level groups with a class of their own.
    """
    if denied := _DENIED.search(report):
        return f"{recipe}: its recipe names {denied[1]}; {how_to_allow([denied[1]])}"
    path: list[str] = []
    cls: type | None = None
    reasons: list[str] = []
    given: str | None = None
    depth = 0
    for raw in report.splitlines():
        line = raw.strip().removeprefix("- ")
        indent = len(raw) - len(raw.lstrip())
        if reasons and indent < depth and not line.startswith("Given value"):
            break  # what follows is about the group around the wrong value
        if found := _KEY.match(line):
            path += found[1].split(".")
            cls = groups.get(path[0], cls) if len(path) <= 2 else cls
            if found[2].strip():
                reasons.append(found[2].strip())
        elif found := _CLASS.match(line):
            located = locate(found[1])
            if not isinstance(located, type):
                path.append("class_path")
                given = found[1]
                continue
            cls = located
            if not dataclasses.is_dataclass(cls):
                path.append("init_args")
        elif found := _UNKNOWN.match(line):
            path += found[1].split(".")
            return _unknown(path, cls, recipe, overrides, groups)
        elif found := _UNRECOGNIZED.match(line):
            path += found[1].removeprefix("--").partition("=")[0].split(".")
            return _unknown(path, cls, recipe, overrides, groups)
        elif found := _UNKNOWN_IN_GROUP.match(line):
            path += [*found[1].split("."), found[2]]
            return _unknown(path, cls, recipe, overrides, groups)
        elif found := _MISSING.match(line):
            path.append(found[1])
            return f"{_where(path, recipe, overrides)}: missing, it must be set"
        elif "has no attribute" in line or "No module named" in line:
            break
        elif found := _NO_CLASS.match(line):
            path.append("class_path")
            given = found[1]
            break
        elif found := _WRONG_CLASS.search(line):
            path.append("class_path")
            reasons = [f"expected a subclass of {found[1]}"]
            break
        elif line.startswith("Expected a path but"):
            continue  # a class could be given as a file, too
        elif found := _EXPECTED.match(line):
            depth = depth or indent
            reasons.append(f"expected {_type_name(found[1])}")
            given = given or found[2]
        elif found := _GIVEN.match(line):
            if given is None and not found[1].startswith(("{", "Namespace(", "NestedArg(")):
                given = found[1]
            break
    if path and path[-1] == "class_path" and not reasons:
        reasons = [f"a class that can be imported{_close_names(given or '')}"]
    if not path:
        return f"{recipe}: {' '.join(report.split())}"
    value = f"{shown(given)} given, " if given is not None else ""
    expected = " or ".join(dict.fromkeys(r.removeprefix("expected ") for r in reasons))
    return f"{_where(path, recipe, overrides)}: {value}expected {expected or 'something else'}"


def _close_names(class_path: str) -> str:
    """Classes whose names are close, in the same package if that is imported."""
    package, _, name = class_path.rpartition(".")
    known = vars(sys.modules[package]) if package in sys.modules else {}
    classes = [key for key, value in known.items() if isinstance(value, type)]
    close = get_close_matches(name, classes, n=3, cutoff=0.6)
    if not close:
        return ", such as zoo.tasks.ImageClassification"
    return "; did you mean " + " or ".join(f"{package}.{key}" for key in close) + "?"


def _unknown(
    path: list[str],
    cls: type | None,
    recipe: str,
    overrides: Sequence[str],
    groups: dict[str, type],
) -> str:
    """An unknown key at the end of ``path``, inside ``cls`` if any."""
    known: Iterable[str] = ()
    if path[0] not in groups and cls is None:
        path, known = path[:1], GROUPS
    elif cls := cls or groups.get(path[0]):
        known = (key for key in keys_of(cls) if "." not in key)
    return f"{_where(path, recipe, overrides)}: no such key; {suggest(path[-1], known)}"


def _where(path: list[str], recipe: str, overrides: Sequence[str]) -> str:
    """The key, with the file it stands in, or as an option if the command line has it."""
    key = ".".join(path)
    short = key.replace(".init_args", "")
    for option, value in split_options(overrides):
        name = option.removeprefix("--").removesuffix("+")
        if name in (key, short, short.removesuffix(".class_path")) or name.startswith(f"{key}."):
            return option
        if value[:1] in ("{", "[") and short.startswith(f"{name}."):
            return f"{option}: {short.removeprefix(f'{name}.')}"
    return f"{recipe}: {key}"


def _type_name(text: str) -> str:
    """``<class 'NoneType'>`` -> null, ``<class 'int'>`` -> int, a Literal -> its values."""
    if text.startswith("typing.Literal["):
        return text.removeprefix("typing.Literal[").removesuffix("]").replace("'", "")
    found = re.fullmatch(r"<class '(.+)'>", text)
    name = found[1] if found else text
    return {"NoneType": "null"}.get(name, name.rpartition(".")[2] if found else name)
