"""Short public names: ``zoo.tasks.Segmentation`` for a class anywhere below ``zoo/tasks``.

Recipes and checkpoints name classes by these, so that files may move. A name is found in the source
text, and its module is imported only when it is used; a new file enters no list.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

_NO_FAMILIES = (("formats",), ("synthetic",))
_CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


@functools.cache
def public_classes(package: str, families: bool = True) -> Mapping[str, str]:
    """Name of every public class -> the module below ``package`` that defines it.

    Files that start with an underscore hold none, nor do folders that are no family (``formats``,
    ``synthetic``).

    Args:
        package: such as ``zoo.tasks``.
        families: look into its folders as well.

    Raises:
        ValueError: two modules define a class of the same name.
    """
    root = Path(import_module(package).__path__[0])
    found: dict[str, str] = {}
    for file in sorted(root.glob("**/*.py" if families else "*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or parts[:-1][:1] in _NO_FAMILIES:
            continue
        module = ".".join((package, *parts))
        for name in _CLASS.findall(file.read_text(encoding="utf-8")):
            if name in found:
                raise ValueError(
                    f"{package}.{name} is defined in {found[name]} and {module}: rename one, or "
                    "begin its name with an underscore"
                )
            found[name] = module
    return MappingProxyType(found)


def is_class(path: str) -> bool:
    """Whether zoo has a class of this name, ``zoo.tasks.Segmentation`` or by the module that
    defines it; nothing is imported, and what a module has imported is not its own.
    """
    package, _, name = path.rpartition(".")
    if package in ("zoo.tasks", "zoo.data"):
        return name in public_classes(package)
    parts = package.split(".")
    if parts[0] != "zoo" or not all(part.isidentifier() for part in parts):
        return False
    base = Path(__file__).resolve().parent.joinpath(*parts[1:])
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if len(parts) > 1 and file.is_file():
            return name in _CLASS.findall(file.read_text(encoding="utf-8"))
    return False


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported when they are used.

    Args:
        package: such as ``zoo.runs``.
        homes: name -> the module that has it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted(homes)

    return find, names


def lazy_classes(
    package: str, families: bool = True
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose classes are found when they are used."""

    def find(name: str) -> Any:
        module = None if name.startswith("_") else public_classes(package, families).get(name)
        if module is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(module), name)

    def names() -> list[str]:
        return sorted(public_classes(package, families))

    return find, names
