"""Our ops under the names that other people's code imports: mamba_ssm, causal_conv1d and more.

After ``zoo.compat.install()``, the papers' own repositories and the Mamba models of Hugging Face
transformers run on these kernels, on a CPU as well, without a change in their code::

    import zoo.compat
    zoo.compat.install()
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from transformers import MambaForCausalLM

A package that is really installed is never replaced.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from zoo.compat import huggingface
from zoo.compat.stand_ins import PACKAGES, Finder

__all__ = ["install", "installed", "uninstall"]

log = logging.getLogger("zoo")

_finder: Finder | None = None


def install() -> tuple[str, ...]:
    """Let imports of the packages that are absent find our ops; twice is as good as once.

    Models of transformers that are already imported are switched over, those that are imported
    later find the ops by themselves (transformers 5.15 or newer; older ones look at the device
    instead, which is logged).

    Returns:
        the names that are answered here now; those of installed packages are not among them.
    """
    global _finder
    if _finder is None:
        absent = []
        for name in PACKAGES:
            if name in sys.modules or find_spec(name) is not None:
                log.info("zoo.compat: %s is installed and stays as it is", name)
            else:
                absent.append(name)
        # At the end of the search, behind everything that could find a real module.
        _finder = Finder(absent)
        sys.meta_path.append(_finder)
        huggingface.switch()
    return _finder.packages


def uninstall() -> None:
    """Undo :func:`install`, in transformers as well; other code keeps what it has imported."""
    global _finder
    if _finder is None:
        return
    sys.meta_path.remove(_finder)
    for name in [n for n in sys.modules if n.partition(".")[0] in _finder.packages]:
        del sys.modules[name]
    _finder = None
    huggingface.switch()


@contextmanager
def installed() -> Iterator[tuple[str, ...]]:
    """:func:`install` for the time of a ``with`` block, if it was not installed before."""
    was_installed = _finder is not None
    try:
        yield install()
    finally:
        if not was_installed:
            uninstall()
