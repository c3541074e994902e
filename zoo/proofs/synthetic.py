"""The training loop of proofs that need no recipe: one network, made batches, AdamW."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
) -> nn.Module:
    """Minimise ``loss(step)`` over ``steps`` steps; the rate warms up and falls to zero (one
    cycle).

    Returns:
        the network, in evaluation mode.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def reach(network: Callable[[Tensor], Tensor], x: Tensor, place: tuple[int, ...]) -> Tensor:
    """Which positions of the input an output depends on.

    Args:
        network: [1, ...positions, C] -> [1, ...positions, C].
        x: an input; float64, so that small influences do not vanish.
        place: position of the output.

    Returns:
        bool [...positions]: whether the gradient of the output to that input position is non-zero.
    """
    x = x.requires_grad_()
    output = network(x)[(0, *place)]
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return gradient[0].ne(0).any(dim=-1)
