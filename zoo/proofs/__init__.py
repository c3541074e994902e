"""Proofs: a paper's claim as measurements and inequalities.

What several proofs measure is found here by its name, ``zoo.proofs.Trained``; what one paper's
proof measures by the paper's, ``zoo.proofs.vmamba.Reach``, which stands in
``zoo/proofs/<family>/<system>.py``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.lazy import lazy_classes

_find_class, __dir__ = lazy_classes(__name__, families=False)


def __getattr__(name: str) -> Any:
    if name.islower() and not name.startswith("_"):
        for file in Path(__file__).parent.glob(f"*/{name}.py"):
            return import_module(f"{__name__}.{file.parent.name}.{name}")
    return _find_class(name)
