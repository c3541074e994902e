"""Sine embedding of coordinates: of boxes and points that a decoder refines layer by layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_embedding(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Embed every coordinate by itself, sine and cosine alternating.

    Args:
        coordinates: [..., K], about 0..1.
        dim: numbers for each coordinate, even.
        temperature: longest period over the shortest, nearly.

    Returns:
        [..., K * dim], the coordinates' embeddings in their order.
    """
    index = torch.arange(0, dim, 2, dtype=coordinates.dtype, device=coordinates.device)
    angle = 2 * math.pi * coordinates[..., None] / temperature ** (index / dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)
