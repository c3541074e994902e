"""Recipe files: where they are, what they are called, how they are read and written.

Nothing here imports PyTorch, so that a recipe that is missing, broken or misspelt is said to be so
at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from zoo.arguments import load_yaml
from zoo.errors import ZooError, shown, suggest
from zoo.lazy import is_class, public_classes

#: What a recipe may hold.
GROUPS = ("seed_everything", "model", "data", "trainer", "checkpoint")
#: Those of them that name a class -> where it is looked for.
CLASS_GROUPS = {"model": "zoo.tasks", "data": "zoo.data"}
_ENDINGS = (".yaml", ".yml")
_DEEPEST, _LARGEST = 50, 100_000
#: Where recipes are in an installed package; in the source folder they stand beside it.
_PACKAGED = "_recipes"


# where


def recipe_folders() -> list[Path]:
    """Folders with ``<family>/<system>/<name>.yaml``: the package's own, then ``recipes/`` of the
    working directory, whose recipes go before those of the same name.
    """
    package = Path(__file__).resolve().parent
    installed = package / _PACKAGED
    own = installed if installed.is_dir() else package.parent / "recipes"
    here = Path.cwd() / "recipes"
    return [folder for folder in dict.fromkeys((own, here)) if folder.is_dir()]


def all_recipes() -> dict[str, Path]:
    """Every recipe by its name, such as ``vision/vmamba/small``."""
    return {
        recipe_name(path): path
        for folder in recipe_folders()
        for path in sorted(folder.glob("*/*/*.yaml"))
    }


def find_recipe(given: str | Path) -> Path:
    """A recipe by its path, or by its name.

    Args:
        given: a file; or ``vision/vmamba/small``, with or without ``recipes/`` before it and
            ``.yaml`` behind it. A file of the working directory goes before a name.

    Raises:
        ZooError: there is none; the message suggests some whose names are close.
    """
    path = Path(given)
    if path.is_file():
        return path
    known = all_recipes()
    parts = (path.with_suffix("") if path.suffix in _ENDINGS else path).parts
    name = "/".join(parts[1:] if parts[:1] == ("recipes",) else parts)
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "zoo list shows what there is"
    what = "is a folder" if path.is_dir() else "does not exist"
    raise ZooError(f"{given} {what}, expected a recipe (.yaml) or the name of one; {hint}")


def recipe_name(recipe: Path) -> str:
    """``.../recipes/vision/vmamba/small.yaml`` -> ``vision/vmamba/small``."""
    parts = recipe.with_suffix("").parts
    for folder in ("recipes", _PACKAGED):
        if folder in parts[:-1]:
            start = len(parts) - parts[::-1].index(folder)
            return "/".join(parts[start:])
    return parts[-1]


# what


def read_yaml(path: Path, shown_as: str | Path | None = None) -> dict[str, Any]:
    """Read a YAML file with keys; a broken one is a :class:`ZooError` that names the line."""
    shown_as = shown_as or path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ZooError(f"{shown_as} does not exist, expected a recipe (.yaml)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{shown_as} cannot be read as a recipe: {error}") from error
    return parse_yaml(text, shown_as)


def parse_yaml(text: str, shown_as: str | Path) -> dict[str, Any]:
    """YAML text with keys; see :func:`read_yaml`."""
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ZooError(f"{shown_as}{line}: not valid YAML, {problem}") from error
    except (ValueError, RecursionError) as error:  # a number or a depth that Python does not take
        raise ZooError(f"{shown_as}: not valid YAML, {error}") from error
    if not isinstance(content, dict):
        raise ZooError(f"{shown_as}: expected keys and values, as in the files below recipes/")
    _check_size(content, shown_as)
    return content


def _check_size(content: Any, shown_as: str | Path) -> None:
    """A few lines of YAML with aliases can stand for more than fits into memory."""
    todo, seen = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        seen += 1
        if depth > _DEEPEST or seen > _LARGEST:
            raise ZooError(
                f"{shown_as}: expected a recipe of at most {_LARGEST:,} values, {_DEEPEST} levels "
                "deep, with what its aliases stand for"
            )
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, (list, tuple)):
            todo += [(inner, depth + 1) for inner in value]


def read_recipe(
    path: Path, overrides: Sequence[str] = (), shown_as: str | None = None
) -> dict[str, Any]:
    """The content of a recipe's file; see :func:`check_recipe`."""
    shown_as = shown_as or str(path)
    return check_recipe(read_yaml(path, shown_as), overrides, shown_as)


def check_recipe(
    content: dict[str, Any], overrides: Sequence[str], shown_as: str
) -> dict[str, Any]:
    """A recipe, with all checked that needs no import: its groups, the names of zoo's classes, and
    the options of the command line.

    Raises:
        ZooError: in one line: the file or option, the key, what was expected.
    """
    for key in content:
        if key not in GROUPS:
            raise ZooError(f"{shown_as}: {key}: no such key; {suggest(str(key), GROUPS)}")
    for group in CLASS_GROUPS:
        keys = ("class_path", "init_args")
        value = content.get(group)
        if not isinstance(value, dict) or "class_path" not in value:
            raise ZooError(f"{shown_as}: {group}: expected class_path and init_args")
        for key in value:
            if key not in keys:
                raise ZooError(f"{shown_as}: {group}.{key}: no such key; {suggest(str(key), keys)}")
    for where, path in class_paths(content):
        _check_class(f"{shown_as}: {where}", path, where)
    check_options(overrides)
    return content


def check_options(overrides: Sequence[str]) -> None:
    """Check what :func:`check_recipe` checks of the command line alone."""
    for option, value in split_options(overrides):
        group, _, key = option.removeprefix("--").partition(".")
        if group not in GROUPS:
            raise ZooError(f"{option}: no such key; {suggest(group, GROUPS)}")
        if group in CLASS_GROUPS and key in ("", "class_path") and isinstance(value, str):
            _check_class(option, value, f"{group}.class_path")


def class_paths(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """What stands at ``class_path``, at any depth, after its place (``model.class_path``)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if key == "class_path":
                yield place, inner
            else:
                yield from class_paths(inner, place)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from class_paths(inner, f"{where}.{number}")


def split_options(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``--a.b VALUE`` and ``--a.b=VALUE`` as pairs; options that ask for help are left out.

    Raises:
        ZooError: a value is missing, or one is there without an option.
    """
    rest = list(overrides)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise ZooError(f"{option}: unexpected argument; a value is set with --a.b VALUE")
        if option.endswith(".help"):
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ZooError(f"{option}: a value is missing behind it")
            value = rest.pop(0)
        yield option, value


def _check_class(told: str, path: Any, where: str) -> None:
    """A class that is said to be zoo's must be there."""
    group, _, key = where.partition(".")
    home = CLASS_GROUPS.get(group) if key == "class_path" else None
    homes = CLASS_GROUPS.values() if home is None else [home]
    known = {name: f"{package}.{name}" for package in homes for name in public_classes(package)}
    if not isinstance(path, str) or not path:
        raise ZooError(f"{told}: {shown(path)} given, expected the name of a class")
    if is_class(path) or not (path.startswith("zoo.") or (home is not None and "." not in path)):
        return
    close = get_close_matches(path.rpartition(".")[2], known, n=3, cutoff=0.6)
    hint = "; did you mean " + " or ".join(known[name] for name in close) + "?"
    raise ZooError(
        f"{told}: {shown(path)} given, expected a class that can be imported"
        + (hint if close else f", such as {next(iter(known.values()))}")
    )
