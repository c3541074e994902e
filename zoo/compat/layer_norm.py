"""``mamba_ssm.ops.triton.layer_norm``: a norm of the residual stream, and the addition before it.

``layernorm`` is the name of this module in mamba_ssm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError

__all__ = ["RMSNorm", "layer_norm_fn", "rms_norm_fn"]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Norm of ``dropout(x) + residual``.

    Args:
        x: [..., D].
        weight, bias: [D].
        residual: the stream before [..., D].
        eps: of the norm.
        dropout_p: share of x that is dropped before the addition.
        prenorm: also return the sum, which is the new residual stream.
        residual_in_fp32: start a stream in float32, whatever x is.
        is_rms_norm: root mean square instead of mean and variance.
        x1, weight1, bias1, rowscale, return_dropout_mask: parallel blocks; not provided here.

    Returns:
        [..., D] in the dtype of x; with ``prenorm`` also the stream, in the dtype of ``residual``.

    Raises:
        ZooError: if one of the arguments that are not provided is used.
    """
    if return_dropout_mask or any(t is not None for t in (x1, weight1, bias1, rowscale)):
        raise ZooError(
            "layer_norm_fn of zoo.compat has no x1, weight1, bias1, rowscale and "
            "return_dropout_mask; for parallel blocks install mamba-ssm"
        )
    dropped = F.dropout(x, dropout_p) if dropout_p > 0 else x
    if residual is not None:
        stream_dtype = residual.dtype
        total = dropped.float() + residual.float()
    else:
        stream_dtype = torch.float32 if residual_in_fp32 else x.dtype
        total = dropped.float()
    shape, w = x.shape[-1:], weight.float()
    b = None if bias is None else bias.float()
    if is_rms_norm:
        out = F.rms_norm(total, shape, w, eps)
        out = out if b is None else out + b
    else:
        out = F.layer_norm(total, shape, w, b, eps)
    out = out.to(x.dtype)
    return (out, total.to(stream_dtype)) if prenorm else out


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`layer_norm_fn` with ``is_rms_norm``."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        is_rms_norm=True,
        return_dropout_mask=return_dropout_mask,
    )


class RMSNorm(nn.Module):
    """Root-mean-square norm with the addition of the residual before it.

    Args:
        hidden_size: D.
        eps: of the norm.
        dropout_p: share of x that is dropped in training.
        device, dtype: of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p = eps, dropout_p
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        nn.init.ones_(self.weight)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See :func:`layer_norm_fn`."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual,
            eps=self.eps,
            dropout_p=self.dropout_p if self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
