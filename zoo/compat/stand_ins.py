"""Modules named as other packages' are, made of ours when they are imported."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import torch

from zoo.compat.names import MODULES, OPS, PACKAGES

log = logging.getLogger("zoo")


class Filler(Loader):
    """Fills a module with our functions."""

    def exec_module(self, module: ModuleType) -> None:
        """What has a list of names is looked up name by name, so that nothing heavy is imported."""
        name = module.__name__
        module.__doc__ = f"{name}, answered by zoo.compat."
        if name in PACKAGES:
            module.__version__ = PACKAGES[name]  # type: ignore[attr-defined]
        module.__all__ = list(_names(name))  # type: ignore[attr-defined]
        module.__getattr__ = partial(_look_up, module)  # type: ignore[method-assign]


class Finder(MetaPathFinder):
    """Answers for packages that are absent; stands behind everything that finds a real module.

    Args:
        packages: the top-level names to answer for, some of ``PACKAGES``.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = tuple(packages)
        self.filler = Filler()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is ours to answer for.

        Raises:
            ModuleNotFoundError: for anything else below such a package, saying what there is.
                Python asks for it also when ``from package import name`` finds no such name.
        """
        package = fullname.partition(".")[0]
        if package not in self.packages or (package != fullname and not is_ours(package)):
            return None
        if fullname not in MODULES:
            parent, _, name = fullname.rpartition(".")
            raise ModuleNotFoundError(_absent(parent, name))
        return _spec(fullname, self.filler)


class Replacer(MetaPathFinder):
    """Answers for ops of installed packages that cannot run here; stands before all others.

    Args:
        broken: compiled modules that are installed and cannot be imported.
        after_import: module of somebody else -> what to do with it once it has been imported.
    """

    def __init__(
        self, broken: Iterable[str], after_import: dict[str, Callable[[ModuleType], None]]
    ) -> None:
        self.broken, self.after_import = frozenset(broken), after_import
        self.filler = Filler()
        self.replaced: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Our spec for a real module that cannot run; another module's own spec, watched."""
        if fullname in self.after_import:
            return self._watched(fullname, path)
        if fullname not in OPS or not (fullname in self.broken or not has_gpu()):
            return None
        if find_real(fullname, path) is None:
            return None
        package = fullname.partition(".")[0]
        if package not in self.replaced:
            self.replaced.add(package)
            reason = "it cannot be loaded" if fullname in self.broken else "there is no GPU"
            log.warning("zoo.compat: %s is installed, but %s: its ops are ours", package, reason)
        return _spec(fullname, self.filler)

    def _watched(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        spec = find_real(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Watching(spec.loader, self.after_import[fullname])
        return spec


class _Watching(Loader):
    """Another loader, and something to do after it."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.then(module)

    def __getattr__(self, name: str) -> Any:  # get_source and others, for tracebacks and inspect
        return getattr(self.loader, name)


def has_gpu() -> bool:
    """Whether there is a device that compiled or Triton kernels of such packages run on."""
    return torch.cuda.is_available() or torch.xpu.is_available()


def find_real(fullname: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """The spec that anybody but us has of a module."""
    for finder in sys.meta_path:
        if isinstance(finder, (Finder, Replacer)) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(fullname, path)
        if spec is not None:
            return spec
    return None


def find_installed(fullname: str) -> ModuleSpec | None:
    """:func:`find_real` of a module in a package, of which nothing is imported."""
    path: Sequence[str] | None = None
    spec = None
    parts = fullname.split(".")
    for end in range(1, len(parts) + 1):
        spec = find_real(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def is_ours(name: str) -> bool:
    """Whether an imported module was filled here."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return isinstance(getattr(spec, "loader", None), Filler)


def _spec(fullname: str, filler: Filler) -> ModuleSpec | None:
    # All are packages, so that Python asks for names that they lack.
    return spec_from_loader(fullname, filler, origin="zoo.compat", is_package=True)


def _names(module: str) -> dict[str, str]:
    """Names of a module -> the module or object of ours that each comes from."""
    found = {}
    for place, names in MODULES[module]:
        found.update(dict.fromkeys(names or import_module(place).__all__, place))
    return found


def _look_up(module: ModuleType, attribute: str) -> Any:
    """A name of a module that is not in it yet; Python asks once for each."""
    name = module.__name__
    below = f"{name}.{attribute}"
    place = _names(name).get(attribute)
    if place is None and below in MODULES and sys.modules.get(name) is module:
        return import_module(below)
    if place is None:
        raise AttributeError(_absent(name, attribute))
    path, _, part = place.partition(":")
    source: Any = import_module(path)
    value = getattr(getattr(source, part) if part else source, attribute)
    setattr(module, attribute, value)
    return value


def _absent(name: str, attribute: str) -> str:
    prefix = f"{name}."
    below = [m.removeprefix(prefix) for m in MODULES if m.startswith(prefix)]
    there = [*_names(name), *(m for m in below if "." not in m)]
    return (
        f"{name} is answered by zoo.compat, which has no '{attribute}' in it, only "
        f"{', '.join(there) or 'nothing'}; for the rest, install the package itself"
    )
