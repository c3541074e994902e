"""The models by name: ``@register_model`` enters one, ``create_model`` builds one.

What is said of the models of this package is read from their sources
(:mod:`zoo.models._catalogue`), and a model's module is imported only when it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.errors import ZooError
from zoo.models._catalogue import catalogue

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
        parameters: how many it has; None if that is not declared.
        module: where its builder is written.
    """

    name: str
    family: str
    system: str
    description: str
    source: str | None
    parameters: int | None
    module: str

    @property
    def build(self) -> Build:
        """Builds it from keyword arguments that override the variant's; imports its module."""
        return self._builders()[0]

    @property
    def adapt(self) -> Build | None:
        """None, or what a whole family does around :attr:`build`: called with a function that
        builds the model and loads its weights, and with the overrides.
        """
        return self._builders()[1]

    def _builders(self) -> tuple[Build, Build | None]:
        if self.name not in _builders:
            import_module(self.module)
        return _builders[self.name]


#: Models whose modules are imported.
_builders: dict[str, tuple[Build, Build | None]] = {}
#: Models that are registered outside this package.
_others: dict[str, ModelInfo] = {}


def register_model(
    *, source: str | None = None, parameters: int | None = None, adapt: Build | None = None
) -> Callable[[BuildT], BuildT]:
    """Enter the decorated function under its own name; family and system follow from its module.

    The function takes keyword arguments that override the variant's and returns a module. In this
    package ``source`` and ``parameters`` are constants, which are read without importing anything.

    Args:
        source, parameters, adapt: see :class:`ModelInfo`.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(build: BuildT) -> BuildT:
        name, module = build.__name__, build.__module__
        known = catalogue().get(name) or _others.get(name)
        if known is not None and known.module != module:
            raise ValueError(
                f"the model name '{name}' is taken by {known.module}: give the one in {module} "
                "another name"
            )
        if name not in catalogue():
            description = (build.__doc__ or "").strip().partition("\n")[0]
            _others[name] = _info(name, module, description, source, parameters)
        _builders[name] = build, adapt
        return build

    return decorate


def _info(
    name: str, module: str, description: str, source: str | None, parameters: int | None
) -> ModelInfo:
    family, system = ["", *module.split(".")][-2:]
    return ModelInfo(name, family, system.lstrip("_"), description, source, parameters, module)


def model_info(name: str) -> ModelInfo:
    """Family, system, source, count and builder of a model; nothing is imported.

    Raises:
        ZooError: there is none of this name.
    """
    if name in _others:
        return _others[name]
    entry = catalogue().get(name)
    if entry is None:
        close = get_close_matches(name, list_models(), n=4)
        hint = f"did you mean {', '.join(close)}?" if close else "see zoo.list_models()"
        raise ZooError(f"there is no model '{name}': {hint}")
    told = entry.arguments
    return _info(name, entry.module, entry.description, told.get("source"), told.get("parameters"))


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern such as ``"vmamba*"``, sorted."""
    return sorted(name for name in {*catalogue(), *_others} if fnmatch(name, pattern))


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
