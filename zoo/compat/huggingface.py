"""The Mamba models of Hugging Face transformers, and how they choose their kernels.

Since 5.15, transformers asks for a function of mamba_ssm or causal_conv1d at the moment when a
model's file is imported, takes it on any device, and answers with its own PyTorch code if there is
none. So models that are imported after :func:`zoo.compat.install` need nothing; in those that were
imported before, that question is asked again.

One model gives other numbers: Falcon-Mamba in training. transformers normalises its step size
before the projection to d_inner, mamba_ssm's fused block (which we follow) behind it.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

log = logging.getLogger("zoo")

#: The function in a model's file -> name and package of what it stands for.
FUNCTIONS = {
    "causal_conv1d_fn": ("causal_conv1d_fn", "causal_conv1d"),
    "causal_conv1d_update": ("causal_conv1d_update", "causal_conv1d"),
    "mamba_inner_fn": ("mamba_inner_fn", "mamba_ssm"),
    "mamba_selective_scan": ("selective_scan_fn", "mamba_ssm"),
    "mamba_selective_state_update": ("selective_state_update", "mamba_ssm"),
    "mamba2_chunk_scan": ("mamba_chunk_scan_combined", "mamba_ssm"),
    "mamba2_selective_state_update": ("selective_state_update", "mamba_ssm"),
    "mamba2_split_conv1d_scan_combined": ("mamba_split_conv1d_scan_combined", "mamba_ssm"),
}
_OLDEST = (5, 15)


def switch() -> None:
    """Let the models that are imported choose their functions again."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return
    hub = sys.modules.get("transformers.integrations.hub_kernels")
    question = getattr(hub, "use_kernel_func_from_hub_with_fallback", None)
    too_old = tuple(int(n) for n in re.findall(r"\d+", installed)[:2]) < _OLDEST
    if too_old or (hub is not None and question is None):
        log.warning(
            "zoo.compat: transformers %s does not ask for such functions as 5.15 to 5.23 do; its "
            "models keep their own code where there is no CUDA device",
            installed,
        )
    if question is None:
        return
    for name, module in list(sys.modules.items()):
        if not re.fullmatch(r"transformers\.models\.\w+\.modeling_\w+", name):
            continue
        for attribute, (function, package) in FUNCTIONS.items():
            chosen: Any = vars(module).get(attribute)
            if hasattr(chosen, "__wrapped__"):
                setattr(module, attribute, question(function, package)(inspect.unwrap(chosen)))
