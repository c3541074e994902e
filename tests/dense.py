"""What the tests of the dense models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import zoo


def count(name: str, **overrides: Any) -> int:
    """Parameters of a registered model, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in zoo.create_model(name, **overrides).parameters())


def check_learning(
    model: nn.Module, forward: Callable[[], Tensor], shape: tuple[int, ...], but: str = "\0"
) -> None:
    """The output has the shape, and one step changes every learning parameter but those named."""
    output = forward()
    assert output.shape == shape
    torch.manual_seed(0)
    (output * torch.randn_like(output)).sum().backward()
    still = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and but not in name and (p.grad is None or not p.grad.any())
    ]
    assert still == []
