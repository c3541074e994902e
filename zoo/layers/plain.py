"""Linear layers and convolutions whose weight is used without calling them.

A fused kernel, or one product instead of several, reads the weight of a module and never calls its
forward. What others put around a module then has no effect: hooks, adapters (LoRA), quantised and
parametrised forms. So a weight is read only where :func:`is_plain` says that calling the module
would do no more; anything else is called.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as modules

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(*parts: nn.Module) -> bool:
    """Whether each is a linear layer or convolution of PyTorch, as it is, with no hook and with an
    ordinary weight: quantised ones are of a class of their own that knows its products alone."""
    if any(getattr(modules, f"_global{hooks}") for hooks in _HOOKS):
        return False
    return all(
        type(part) in _PLAIN
        and "forward" not in vars(part)
        and not hasattr(part.weight, "__tensor_flatten__")
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        for part in parts
    )


def like(layer: nn.Module) -> Tensor:
    """A tensor in the dtype and on the device of what ``layer`` computes, for a state to be made:
    its weight, or in place of a quantised one, which is packed or a method, one of no elements."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return weight
    return torch.empty(0, device=weight.device if isinstance(weight, Tensor) else None)


def split_bias(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``linear(x)`` in two parts, product and bias, which a scan adds; without the second if the
    layer had to be called."""
    if is_plain(linear):
        return F.linear(x, linear.weight), linear.bias  # type: ignore[arg-type, return-value]
    return linear(x), None


def at_zero(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear(0)`` [out_features] for inputs like x: its bias, if it has no more to it."""
    if is_plain(linear):
        return linear.bias  # type: ignore[return-value]
    return linear(x.new_zeros(1, x.shape[-1]))[0]


def linear_of_half(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear(x / 2)``; halving a weight is as exact as halving x, and spares a pass over x."""
    if is_plain(linear):
        return F.linear(x, linear.weight / 2, linear.bias)  # type: ignore[operator, arg-type]
    return linear(x / 2)
