"""The models by name: ``@register_model`` enters one, ``create_model`` builds one.

A model's module is found by its name: ``vmamba_tiny`` stands in ``zoo/models/<family>/vmamba.py``,
``mambabcd_tiny`` where a function of that name is written, so that building one model imports one
paper. Only a listing, or a name that is nowhere, imports all.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.errors import ZooError

if TYPE_CHECKING:
    from torch import nn

    Build = Callable[..., nn.Module]

BuildT = TypeVar("BuildT", bound="Callable[..., nn.Module]")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a registered model.

    Attributes:
        name: the name that :func:`create_model` takes.
        family: the folder of its paper below ``zoo/models``, such as ``vision``.
        system: the file of its paper, such as ``vmamba``.
        description: the first line of the builder's docstring.
        source: where the authors' weights are (a URL or ``hf://owner/name/file``); None if they
            published none.
        build: builds it from keyword arguments that override the variant's.
        adapt: None, or what a whole family does around ``build``: called with a function that
            builds the model and loads its weights, and with the overrides.
    """

    name: str
    family: str
    system: str
    description: str
    source: str | None
    build: Build
    adapt: Build | None = None


_models: dict[str, ModelInfo] = {}


def register_model(
    *, source: str | None = None, adapt: Build | None = None
) -> Callable[[BuildT], BuildT]:
    """Enter the decorated function under its own name; family and system follow from its module.

    The function takes keyword arguments that override the variant's and returns a module; see
    :class:`ModelInfo` for ``source`` and ``adapt``.
    """

    def decorate(build: BuildT) -> BuildT:
        name = build.__name__
        family, file = build.__module__.split(".")[-2:]
        system = file.lstrip("_")
        known = _models.get(name)
        if known is not None and known.build.__module__ != build.__module__:
            raise ValueError(
                f"the model name '{name}' is taken by {known.build.__module__}: "
                f"give the one in {build.__module__} another name"
            )
        description = (build.__doc__ or "").strip().partition("\n")[0]
        _models[name] = ModelInfo(name, family, system, description, source, build, adapt)
        return build

    return decorate


@functools.cache
def _systems() -> dict[str, str]:
    """Module path of every file that may register models -> its name."""
    return {
        module.name: module.name.rpartition(".")[2].lstrip("_")
        for family in pkgutil.iter_modules(import_module("zoo.models").__path__, "zoo.models.")
        if family.ispkg
        for module in pkgutil.iter_modules(import_module(family.name).__path__, family.name + ".")
    }


def _defines(module: str, name: str) -> bool:
    """Whether the source of a module that is not imported has a function of this name."""
    spec = find_spec(module)
    origin = spec.origin if spec else None
    return bool(origin) and f"\ndef {name}(" in Path(str(origin)).read_text(encoding="utf-8")


def model_info(name: str) -> ModelInfo:
    """Family, system, source and builder of a model; an unknown name is a :class:`ZooError`."""
    if name not in _models:
        for module, system in _systems().items():
            if name.startswith(system):
                import_module(module)
    if name not in _models:
        for module in _systems():
            if _defines(module, name):
                import_module(module)
    if name not in _models:
        known = list_models()
        if name not in known:
            close = get_close_matches(name, known, n=4)
            hint = f"did you mean {', '.join(close)}?" if close else "see zoo.list_models()"
            raise ZooError(f"there is no model '{name}': {hint}")
    return _models[name]


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern such as ``"vmamba*"``, sorted."""
    for module in _systems():
        import_module(module)
    return sorted(name for name in _models if fnmatch(name, pattern))


def create_model(name: str, pretrained: bool | str = False, **overrides: Any) -> nn.Module:
    """Build a model.

    Args:
        name: one of :func:`list_models`.
        pretrained: True for the authors' weights; or a file, a folder, a URL or
            ``hf://owner/name[/file]`` for :func:`zoo.load_pretrained`.
        overrides: keyword arguments of the model's class that replace the variant's, for example
            ``num_classes=10`` or, for a vision backbone, ``features_only=True``.

    Raises:
        ZooError: if the name or an argument is unknown, or no weights are published.
    """
    info = model_info(name)
    source = info.source if pretrained is True else pretrained
    if pretrained is True and source is None:
        raise ZooError(
            f"no weights of '{name}' are published: pass pretrained=False, or the file to load"
        )

    def build(**kwargs: Any) -> nn.Module:
        model = info.build(**kwargs)
        if source:
            from zoo.checkpoints import load_pretrained

            load_pretrained(model, source)
        return model

    try:
        return build(**overrides) if info.adapt is None else info.adapt(build, **overrides)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ZooError(f"cannot build '{name}': {error}") from error
