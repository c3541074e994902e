"""Norms that PyTorch and timm lack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.precision import at_least_fp32


def add_norm(
    x: Tensor, residual: Tensor | None, norm: nn.Module, residual_in_fp32: bool = True
) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream and normalise the sum (the pre-norm step of Mamba's blocks).

    Args:
        x: output of the block before [..., C].
        residual: the stream so far [..., C]; None before the first block.
        norm: a norm over the last dimension, such as :class:`torch.nn.RMSNorm`.
        residual_in_fp32: keep the stream in float32 also where x is in half precision.

    Returns:
        The normalised stream in the dtype of x, and the stream.
    """
    stream = x if residual is None else residual + x
    stream = at_least_fp32(stream) if residual_in_fp32 else stream
    return norm(stream).to(x.dtype), stream


class RMSNormGated(nn.Module):
    r"""RMSNorm with a gate (Mamba-2, arXiv 2405.21060, section 7.1).

    .. math::
        \mathrm{RMSNorm}(x \cdot \mathrm{silu}(z))\,w \quad \text{or} \quad
        \mathrm{RMSNorm}(x)\,w \cdot \mathrm{silu}(z)

    Args:
        dim: channels.
        eps: added to the mean square.
        group_size: channels whose mean square is taken together; all by default.
        norm_before_gate: the second form; by default the first.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.group_size = eps, group_size or dim
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and its gate, [..., dim]; the arithmetic is at least float32."""
        y, gate = at_least_fp32(x), F.silu(at_least_fp32(z))
        y = y if self.norm_before_gate else y * gate
        groups = y.unflatten(-1, (-1, self.group_size))
        y = F.rms_norm(groups, (self.group_size,), eps=self.eps).flatten(-2) * self.weight
        return (y * gate if self.norm_before_gate else y).to(x.dtype)
