"""Modules named as other packages' are, made of ours when they are imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_SCAN = "zoo.compat.selective_scan_interface"
_CONV = "zoo.compat.causal_conv1d_interface"
_KERNELS = "zoo.compat.kernels"

#: Module -> the module of ours that it is made of, and what of it (all public names if empty).
MODULES: dict[str, tuple[str, tuple[str, ...]] | None] = {
    "mamba_ssm": (_SCAN, ("selective_scan_fn", "mamba_inner_fn")),
    "mamba_ssm.ops": None,
    "mamba_ssm.ops.selective_scan_interface": (_SCAN, ()),
    "mamba_ssm.ops.triton": None,
    "mamba_ssm.ops.triton.layer_norm": ("zoo.compat.layer_norm", ()),
    "mamba_ssm.ops.triton.layernorm": ("zoo.compat.layer_norm", ()),
    "mamba_ssm.ops.triton.layernorm_gated": ("zoo.compat.layernorm_gated", ()),
    "mamba_ssm.ops.triton.selective_state_update": ("zoo.compat.selective_state_update", ()),
    "mamba_ssm.ops.triton.ssd_combined": ("zoo.compat.ssd_combined", ()),
    "causal_conv1d": (_CONV, ("causal_conv1d_fn", "causal_conv1d_update")),
    "causal_conv1d.causal_conv1d_interface": (
        _CONV,
        (
            "causal_conv1d_fn",
            "causal_conv1d_ref",
            "causal_conv1d_update",
            "causal_conv1d_update_ref",
        ),
    ),
    "causal_conv1d.causal_conv1d_varlen": (_CONV, ("causal_conv1d_varlen_states",)),
    "selective_scan_cuda": (f"{_KERNELS}:selective_scan_cuda", ("fwd", "bwd")),
    "selective_scan_cuda_core": (f"{_KERNELS}:selective_scan_cuda_core", ("fwd", "bwd")),
    "selective_scan_cuda_oflex": (f"{_KERNELS}:selective_scan_cuda_oflex", ("fwd", "bwd")),
    "causal_conv1d_cuda": (
        f"{_KERNELS}:causal_conv1d_cuda",
        ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"),
    ),
}
#: The packages, and the versions whose interfaces these are.
PACKAGES = {
    "mamba_ssm": "2.3.2+zoo",
    "causal_conv1d": "1.6.1+zoo",
    "selective_scan_cuda": "2.3.2+zoo",
    "selective_scan_cuda_core": "0.0.2+zoo",
    "selective_scan_cuda_oflex": "0.0.2+zoo",
    "causal_conv1d_cuda": "1.6.1+zoo",
}


class Finder(MetaPathFinder, Loader):
    """Finds and fills the modules of some ``PACKAGES``.

    Args:
        packages: the top-level names to answer for.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is ours to answer for.

        Raises:
            ModuleNotFoundError: for anything else below such a package, saying what there is.
                Python asks for it also when ``from package import name`` finds no such name.
        """
        if fullname.partition(".")[0] not in self.packages:
            return None
        if fullname not in MODULES:
            parent, _, name = fullname.rpartition(".")
            raise ModuleNotFoundError(_absent(parent, name))
        # All are packages, so that Python asks here for names that they lack.
        return spec_from_loader(fullname, self, origin="zoo.compat", is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with our functions."""
        name = module.__name__
        module.__doc__ = f"{name}, answered by zoo.compat."
        if name in PACKAGES:
            module.__version__ = PACKAGES[name]  # type: ignore[attr-defined]
        module.__getattr__ = partial(_missing, name)  # type: ignore[method-assign]
        for attribute, value in _contents(name).items():
            setattr(module, attribute, value)


def _contents(name: str) -> dict[str, Any]:
    entry = MODULES[name]
    if entry is None:
        return {}
    place, names = entry
    path, _, part = place.partition(":")
    source: Any = import_module(path)
    return {
        n: getattr(getattr(source, part) if part else source, n) for n in names or source.__all__
    }


def _missing(name: str, attribute: str) -> Any:
    below = f"{name}.{attribute}"
    if below in MODULES and name in sys.modules:
        return import_module(below)
    raise AttributeError(_absent(name, attribute))


def _absent(name: str, attribute: str) -> str:
    prefix = f"{name}."
    below = [m.removeprefix(prefix) for m in MODULES if m.startswith(prefix)]
    there = [*_contents(name), *(m for m in below if "." not in m)]
    return (
        f"{name} is answered by zoo.compat, which has no '{attribute}' in it, only "
        f"{', '.join(there) or 'nothing'}; for the rest, install the package itself"
    )
