"""Grids of arguments, and gradients compared over them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import torch
from torch import Tensor

BOTH = (False, True)
ITYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {
    torch.float32: (6e-4, 2e-3),
    torch.float16: (3e-3, 5e-3),
    torch.bfloat16: (3e-2, 5e-2),
}


def every(*axes: Sequence) -> list[tuple]:
    return list(itertools.product(*axes))


def some(count: int, *axes: Sequence) -> list[tuple]:
    """Some combinations, the same ones every time."""
    return random.Random(0).sample(every(*axes), count)


def leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().requires_grad_()


def assert_same_gradients(
    left: Sequence[Tensor | None], right: Sequence[Tensor | None], dtype: torch.dtype
) -> None:
    rtol, atol = TOLERANCE[dtype]
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.grad is not None and b.grad is not None, number
            scale = max(1.0, float(b.grad.abs().max()))
            torch.testing.assert_close(
                a.grad, b.grad, rtol=5 * rtol, atol=10 * atol * scale, check_dtype=True
            )
