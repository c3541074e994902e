"""What ``@register_model`` says of every model, read from the sources: no paper is imported.

A listing, a count or timm's registry so costs the same however many papers there are. Arguments of
the decorators are constants, names of constants at the top level of a module, or sums of these.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_ROOT = Path(__file__).resolve().parent
_MODEL = re.compile(
    r"^@(?P<decorator>register_\w+)\((?P<arguments>(?:(?!\n@|\ndef )[\s\S])*?)\)\n"
    r"def (?P<name>\w+)\([^\n]*(?:\n[ )][^\n]*)*?:\n"
    r'(?:    """(?P<description>[^\n]*?)(?:"""|\n))?',
    re.MULTILINE,
)
_IMPORT = re.compile(r"^from (zoo\.[\w.]+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A decorated function.

    Attributes:
        name: of the function and the model.
        module: where it is written.
        decorator: its name.
        arguments: of the decorator.
        description: the first line of the docstring.
    """

    name: str
    module: str
    decorator: str
    arguments: Mapping[str, Any]
    description: str


@functools.cache
def catalogue() -> Mapping[str, Entry]:
    """All registered models of ``zoo/models`` by their names.

    Raises:
        ValueError: two have the same name, or an argument is no constant.
    """
    found: dict[str, Entry] = {}
    for file in sorted(_ROOT.glob("*/*.py")):
        module = f"zoo.models.{file.parent.name}.{file.stem}"
        text = _source(module)
        for match in _MODEL.finditer(text):
            name = match["name"]
            if name in found:
                raise ValueError(
                    f"the model name '{name}' is taken by {found[name].module}: give the one in "
                    f"{module} another name"
                )
            try:
                arguments = _arguments(match["arguments"], module)
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{module}.{name}: an argument of @{match['decorator']} is no constant: {error}"
                ) from error
            found[name] = Entry(
                name, module, match["decorator"], arguments, match["description"] or ""
            )
    return MappingProxyType(found)


@functools.cache
def _source(module: str) -> str:
    path = _ROOT.parent.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _arguments(text: str, module: str) -> dict[str, Any]:
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        value = _value(keyword.value, module)
        arguments |= value if keyword.arg is None else {keyword.arg: value}
    return arguments


def _value(node: ast.expr, module: str) -> Any:
    """The constant that an expression of a module stands for."""
    match node:
        case ast.Name(id=name):
            return _constant(name, module)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return _constant(attribute, _imported(name, module))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, module) + _value(right, module)
    return ast.literal_eval(node)


def _constant(name: str, module: str) -> Any:
    """A name at the top level of a module, there or where it is imported from."""
    pattern = rf"^{name}(?::[^=\n]*)? = (.*?)(?=^[A-Za-z_@#]|\Z)"
    if found := re.search(pattern, _source(module), re.MULTILINE | re.DOTALL):
        return _value(ast.parse(found[1].strip(), mode="eval").body, module)
    return _constant(name, _imported(name, module).removesuffix(f".{name}"))


def _imported(name: str, module: str) -> str:
    """What a name that a module imports stands for."""
    for found in _IMPORT.finditer(_source(module)):
        if name in re.findall(r"\w+", found[2]):
            return f"{found[1]}.{name}"
    raise LookupError(f"{name} is not defined in {module}")
