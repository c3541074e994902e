"""A changed module in the place of one that is imported already.

:func:`patch` gives the functions of a file, wherever they are referred to, the code of a changed
syntax tree. It changes the running process for good: it is meant for a fork.
"""

from __future__ import annotations

import ast
import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

Key = tuple[str, int]


class NotInPlace(RuntimeError):
    """A function cannot take over its changed code."""


def functions_of(path: str) -> list[FunctionType]:
    """All functions of a file that are alive: methods, closures and what decorators wrap too."""
    found = gc.get_objects()
    return [f for f in found if type(f) is FunctionType and f.__code__.co_filename == path]


def patch(
    module: ModuleType,
    path: str,
    tree: ast.Module,
    functions: list[FunctionType],
    at_import: bool = False,
) -> None:
    """Let a module compute what a tree says.

    Args:
        module: the module as it was imported.
        path: its file.
        tree: the changed syntax tree.
        functions: what :func:`functions_of` gives for the file.
        at_import: whether the change is in what is executed with the import (constants, defaults):
            then the tree is executed, and plain values that differ replace those of old.

    Raises:
        NotInPlace: a function cannot take over its changed code.
    """
    wanted = {_key(f.__code__): f.__code__.co_freevars for f in functions}
    fresh = _codes(_compiled(_with_free_names(tree, wanted), path))
    for function in functions:
        old, new = _KNOWN[path][_key(function.__code__)], fresh[_key(function.__code__)]
        # lambdas of one line are told apart by their order
        place = old.index(function.__code__) if len(old) > 1 else 0
        names = function.__code__.co_freevars
        if not old or len(new) != len(old) or new[place].co_freevars != names:
            raise NotInPlace(f"{function.__qualname__} cannot be changed in place")
        if new[place] != function.__code__:
            function.__code__ = new[place]
    if at_import:
        _execute(module, path, tree, functions)


#: File -> key -> the codes that it has unchanged.
_KNOWN: dict[str, dict[Key, list[CodeType]]] = {}


def learn(path: str, tree: ast.Module) -> None:
    """Remember the codes of a file's unchanged tree."""
    _KNOWN[path] = _codes(_compiled(tree, path))


def _compiled(tree: ast.Module, path: str) -> CodeType:
    return compile(tree, path, "exec", dont_inherit=True)


def _key(code: CodeType) -> Key:
    return code.co_name, code.co_firstlineno


def _codes(code: CodeType) -> dict[Key, list[CodeType]]:
    """Every code object in another, by name and line."""
    found: dict[Key, list[CodeType]] = defaultdict(list)
    more = [code]
    while more:
        inner = [c for c in more.pop().co_consts if isinstance(c, CodeType)]
        for c in inner:
            found[_key(c)].append(c)
        more += inner
    return found


def _with_free_names(tree: ast.Module, wanted: dict[Key, tuple[str, ...]]) -> ast.Module:
    """The tree, its functions referring to the free names they had: a closure keeps its size."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            names = wanted.get((node.name, first), ())
            if names:
                idle = ast.If(
                    ast.Constant(False),
                    [ast.Expr(ast.Name(name, ast.Load())) for name in names],
                    [],
                )
                node.body.append(ast.fix_missing_locations(ast.copy_location(idle, node.body[-1])))
    return tree


def _execute(
    module: ModuleType, path: str, tree: ast.Module, functions: list[FunctionType]
) -> None:
    fresh = ModuleType(module.__name__)
    for name in ("__file__", "__package__", "__spec__"):
        setattr(fresh, name, getattr(module, name))
    exec(_compiled(tree, path), vars(fresh))
    new = {_key(f.__code__): f for f in functions_of(path) if f.__globals__ is vars(fresh)}
    for function in functions:
        if (twin := new.get(_key(function.__code__))) is not None:
            _defaults(function, twin)
    for old, other in _pairs(vars(module), vars(fresh)):
        for name, value in list(vars(other).items()):
            known = vars(old).get(name)
            if isinstance(value, FunctionType) and isinstance(known, FunctionType):
                _defaults(known, value)  # a dataclass's __init__
            elif _is_plain(value) and value != known:
                setattr(old, name, value)
    for name, value in vars(fresh).items():
        before = vars(module).get(name)
        if _is_plain(value) and value != before:
            for user in list(sys.modules.values()):
                if vars(user).get(name) is before and user.__name__.startswith(("zoo", "test")):
                    setattr(user, name, value)


def _pairs(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[type, type]]:
    for name, value in new.items():
        if isinstance(value, type) and value.__module__ == new["__name__"]:
            before = old.get(name)
            if isinstance(before, type) and before is not value:
                yield before, value


def _defaults(function: FunctionType, other: FunctionType) -> None:
    """Take over defaults that are plain values."""
    old, new = function.__defaults__, other.__defaults__
    if old is not None and new is not None and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        function.__defaults__ = tuple(n if _is_plain(n) else o for o, n in pairs)
    for name, value in (other.__kwdefaults__ or {}).items():
        if _is_plain(value) and function.__kwdefaults__ is not None:
            function.__kwdefaults__[name] = value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    foreign = isinstance(value, type) and value.__module__.startswith("torch")
    return value is None or foreign or isinstance(value, (bool, int, float, str, bytes))
