"""State-space models and encoder-decoders from 82 papers, with C++ and CUDA kernels.

``import zoo`` itself loads nothing but the standard library; the names below are found when they
are first used, and the vision models are entered into timm's registry when timm is loaded.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any

_EXPORTS = {
    "create_model": "zoo.models.registry",
    "list_models": "zoo.models.registry",
    "model_info": "zoo.models.registry",
    "create_layer": "zoo.models.ssm.mamba360",
    "load": "zoo.predictor",
    "load_pretrained": "zoo.checkpoints",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("ssm-zoo")
        except PackageNotFoundError:
            value = "not installed"
    elif name in _EXPORTS:
        from importlib import import_module

        value = getattr(import_module(_EXPORTS[name]), name)
    else:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterWithTimm(MetaPathFinder):
    """Import ``zoo.models.vision`` right after timm; if timm is never imported, do nothing."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_and_register(module: Any) -> None:
            exec_module(module)
            import zoo.models.vision  # noqa: F401

        spec.loader.exec_module = exec_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    import zoo.models.vision  # noqa: F401
else:
    sys.meta_path.insert(0, _RegisterWithTimm())
