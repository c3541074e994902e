"""Norms that PyTorch and timm lack."""

from __future__ import annotations

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
