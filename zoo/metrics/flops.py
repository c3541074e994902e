"""How much a network computes, counted while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo.ops  # noqa: F401 - enters the operators below

#: A state's part of a step of the selective scan, as the authors of VMamba count it.
SCAN_MULTIPLY_ADDS = 9


def multiply_adds(model: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of ``model(*inputs)``: what papers on vision models call FLOPs.

    Matrix products, convolutions and attention as PyTorch counts them, halved; 9 for each state and
    step of a selective scan and one for its skip. Norms and activations are left out.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_OURS) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


# FlopCounterMode gives the shapes of the tensors and counts two for a multiply-add.


def _scan(u: torch.Size, delta: Any, A: torch.Size, *rest: Any, **named: Any) -> int:
    return 2 * u.numel() * (SCAN_MULTIPLY_ADDS * A[1] + 1)


def _causal_conv(x: torch.Size, weight: torch.Size, *rest: Any, **named: Any) -> int:
    return 2 * x.numel() * weight[1]


_OURS = {
    torch.ops.zoo.selective_scan: _scan,
    torch.ops.zoo.causal_conv1d: _causal_conv,
}
