"""Our ops and layers under the names that other people's code imports: mamba_ssm, causal_conv1d.

After ``zoo.compat.install()``, the papers' own repositories and the Mamba models of Hugging Face
transformers run on these kernels, on a CPU as well, without a change in their code::

    import zoo.compat
    zoo.compat.install()
    from mamba_ssm import Mamba
    from transformers import MambaForCausalLM

A package that is really installed is not replaced, but for its kernels where they cannot run: no
GPU, or a compiled module that cannot be loaded.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from zoo.compat import devices, huggingface
from zoo.compat.names import OPS, PACKAGES
from zoo.compat.stand_ins import Finder, Replacer, find_installed, has_gpu, is_ours

__all__ = ["install", "installed", "uninstall"]

log = logging.getLogger("zoo")

_finder: Finder | None = None
_replacer: Replacer | None = None
_before: frozenset[str] = frozenset()


def install() -> tuple[str, ...]:
    """Let imports of the packages that are absent find our ops; twice is as good as once.

    Models of transformers that are already imported are switched over, those that are imported
    later find the ops by themselves (transformers 5.15 or newer; older ones look at the device
    instead, which is logged). Of a package that is installed, only ops that cannot run here are
    ours; one line of the log says so. Without a CUDA device, ``.cuda()`` of a tensor or module
    leaves it on the CPU; one line says that, too.

    Returns:
        the names that are answered here now; those of installed packages are not among them.
    """
    global _finder, _replacer, _before
    if _finder is not None:
        return _finder.packages
    _before = frozenset(_modules())
    absent, broken = [], []
    for name in PACKAGES:
        if name not in sys.modules and find_installed(name) is None:
            absent.append(name)
        elif has_gpu() and name in OPS and not _can_be_loaded(name):
            broken.append(name)
        elif has_gpu() or not _installed_ops(name):
            log.info("zoo.compat: %s is installed and stays as it is", name)
        elif done := [op for op in OPS & _before if op.partition(".")[0] == name]:
            log.warning(
                "zoo.compat: %s was imported before install() and keeps its own ops, which need a "
                "GPU (%s): call install() first",
                name,
                done[0],
            )
    # At the end of the search, behind everything that could find a real module; and before it.
    _finder = Finder(absent)
    _replacer = Replacer(broken, {huggingface.HUB: huggingface.adopt})
    sys.meta_path.append(_finder)
    sys.meta_path.insert(0, _replacer)
    devices.allow_cpu(on=True)
    huggingface.switch(on=True)
    return _finder.packages


def uninstall() -> None:
    """Undo :func:`install`, in transformers as well; other code keeps what it has imported."""
    global _finder, _replacer
    if _finder is None or _replacer is None:
        return
    sys.meta_path.remove(_finder)
    sys.meta_path.remove(_replacer)
    # Also a real package that has taken ops of ours in.
    ours = {name.partition(".")[0] for name in _modules() if is_ours(name)}
    for name in _modules():
        if name not in _before and name.partition(".")[0] in ours:
            del sys.modules[name]
    _finder = _replacer = None
    devices.allow_cpu(on=False)
    huggingface.switch(on=False)


@contextmanager
def installed() -> Iterator[tuple[str, ...]]:
    """:func:`install` for the time of a ``with`` block, if it was not installed before."""
    was_installed = _finder is not None
    try:
        yield install()
    finally:
        if not was_installed:
            uninstall()


def _modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in PACKAGES]


def _installed_ops(package: str) -> bool:
    ops = [op for op in OPS if op.partition(".")[0] == package]
    return any(find_installed(op) is not None for op in ops)


def _can_be_loaded(name: str) -> bool:
    """Whether a compiled module fits this PyTorch; anything it raises means that it does not."""
    try:
        import_module(name)
    except Exception as error:
        log.info("zoo.compat: %s cannot be loaded: %s", name, error)
        return False
    return True
