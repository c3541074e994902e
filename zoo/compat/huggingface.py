"""The Mamba and delta-rule models of Hugging Face transformers, and how they choose their kernels.

Since 5.15, a model's file of transformers asks, when it is imported, for a function of mamba_ssm,
causal_conv1d or fla to put in the place of its own PyTorch code. That question is answered here, so
that the code a model has for itself stays at hand:

- A function that runs a whole block takes the weights of the block's projections and does not call
  them. Adapters, hooks and quantised layers would be passed by, and Falcon-Mamba norms its step
  size elsewhere. The models keep their own way through a block, and use our ops on it.
- What one of our ops does not take goes to the model's own code.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from zoo.compat.stand_ins import has_gpu, is_ours
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: The module of transformers that asks, and the function in it.
HUB = "transformers.integrations.hub_kernels"
_QUESTION = "use_kernel_func_from_hub_with_fallback"

#: Function that is asked for -> the module it is in. They run a part of a block.
FUNCTIONS = {
    "causal_conv1d_fn": "causal_conv1d.causal_conv1d_interface",
    "causal_conv1d_update": "causal_conv1d.causal_conv1d_interface",
    "chunk_gated_delta_rule": "fla.ops.gated_delta_rule",
    "fused_recurrent_gated_delta_rule": "fla.ops.gated_delta_rule",
    "mamba_chunk_scan_combined": "mamba_ssm.ops.triton.ssd_combined",
    "selective_scan_fn": "mamba_ssm.ops.selective_scan_interface",
    "selective_state_update": "mamba_ssm.ops.triton.selective_state_update",
}
#: Those that run a whole block; of them transformers' own code is to return None.
FUSED = ("mamba_inner_fn", "mamba_split_conv1d_scan_combined")
#: The name in a model's file -> function and package that it asks for.
CHOICES = {
    "causal_conv1d_fn": ("causal_conv1d_fn", "causal_conv1d"),
    "causal_conv1d_update": ("causal_conv1d_update", "causal_conv1d"),
    "mamba_inner_fn": ("mamba_inner_fn", "mamba_ssm"),
    "mamba_selective_scan": ("selective_scan_fn", "mamba_ssm"),
    "mamba_selective_state_update": ("selective_state_update", "mamba_ssm"),
    "mamba2_chunk_scan": ("mamba_chunk_scan_combined", "mamba_ssm"),
    "mamba2_selective_state_update": ("selective_state_update", "mamba_ssm"),
    "mamba2_split_conv1d_scan_combined": ("mamba_split_conv1d_scan_combined", "mamba_ssm"),
    "torch_chunk_gated_delta_rule": ("chunk_gated_delta_rule", "fla"),
    "torch_recurrent_gated_delta_rule": ("fused_recurrent_gated_delta_rule", "fla"),
}
_OLDEST = (5, 15)

_original: Callable[..., Any] | None = None


def adopt(hub: ModuleType) -> None:
    """Answer the question of :data:`HUB`, which has just been imported."""
    global _original
    question = getattr(hub, _QUESTION, None)
    if question is not None and _original is None:
        _original = question
        _set_question(hub, functools.partial(_answer, hub, question))


def switch(*, on: bool) -> None:
    """Answer for transformers from now on, or no longer; models that are imported choose again."""
    global _original
    hub = sys.modules.get(HUB)
    installed = _installed_version()
    if on and installed is not None:
        numbers = tuple(int(n) for n in re.findall(r"\d+", installed)[:2])
        if numbers < _OLDEST or (hub is not None and not hasattr(hub, _QUESTION)):
            log.warning(
                "zoo.compat: transformers %s does not ask for such functions as 5.15 to 5.24 do; "
                "its models keep their own code where there is no CUDA device",
                installed,
            )
    if hub is None:
        return
    if on:
        adopt(hub)
    elif _original is not None:
        _set_question(hub, _original)
        _original = None
    question = getattr(hub, _QUESTION, None)
    if question is None:
        return
    for name, module in list(sys.modules.items()):
        if not re.fullmatch(r"transformers\.models\.\w+\.modeling_\w+", name):
            continue
        for attribute, (function, package) in CHOICES.items():
            chosen: Any = vars(module).get(attribute)
            if hasattr(chosen, "__wrapped__"):
                setattr(module, attribute, question(function, package)(inspect.unwrap(chosen)))


def _set_question(hub: ModuleType, question: Callable[..., Any]) -> None:
    # Models import it from the package above, which keeps it once it has been asked for.
    package = sys.modules.get(HUB.rpartition(".")[0])
    for module in (hub, package):
        if module is not None and _QUESTION in vars(module):
            setattr(module, _QUESTION, question)


def _answer(
    hub: Any, question: Callable[..., Any], name: str, package: str, path: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Their question: the name of a function -> what decorates a model's own version of it."""
    module = FUNCTIONS.get(name, "mamba_ssm" if name in FUSED else "")
    if module.partition(".")[0] != package:
        return question(name, package, path)
    if not _runs_on_us(module):
        if package != "fla" or has_gpu():
            return question(name, package, path)
        # Its modules import one another, so that none is replaced; here only functions are wanted.
        log.warning(
            "zoo.compat: fla is installed, but there is no GPU: %s of transformers is ours", name
        )
        module = "zoo.compat.fla"
    ours = None if name in FUSED else getattr(import_module(module), name)

    def decorate(own: Callable[..., Any]) -> Callable[..., Any]:
        return hub.use_kernel_forward_from_hub(name)(_choose(name, ours, own))

    return decorate


def _runs_on_us(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return is_ours(module)


def _choose(
    name: str, ours: Callable[..., Any] | None, own: Callable[..., Any]
) -> Callable[..., Any]:
    """Our function, and for what it does not take a model's own one."""
    known = frozenset(inspect.signature(ours or own).parameters)
    exporting = import_module("transformers.utils.import_utils").is_torchdynamo_exporting

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        if ours is None or exporting():
            return own(*args, **kwargs)
        try:
            return ours(*args, **{key: value for key, value in kwargs.items() if key in known})
        except ZooError as error:
            # A model's own code runs packed sequences into one another.
            if kwargs.get("seq_idx") is not None or kwargs.get("cu_seqlens") is not None:
                raise
            _say_once(name, str(error))
            return own(*args, **kwargs)

    return call


@functools.cache
def _say_once(name: str, reason: str) -> None:
    log.info("zoo.compat: %s runs on the model's own code: %s", name, reason)


def _installed_version() -> str | None:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None
