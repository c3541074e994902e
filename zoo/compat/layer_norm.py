"""``mamba_ssm.ops.triton.layer_norm``: a norm of the residual stream, and the addition before it.

``layernorm`` is the name of this module in mamba_ssm 1.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]


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
) -> Any:
    """Norm of ``dropout(rowscale x) + dropout(x1) + residual``.

    Args:
        x: [..., D].
        weight, bias: [D].
        residual: the stream before [..., D].
        x1: of a parallel block [..., D]; not together with ``rowscale``.
        weight1, bias1: [D], of a second norm of the same sum.
        eps: of the norms.
        dropout_p: share of x and x1 that is dropped before the addition.
        rowscale: [...], a factor of each row of x.
        prenorm: also return the sum, which is the new residual stream.
        residual_in_fp32: start a stream in float32, whatever x is.
        is_rms_norm: root mean square instead of mean and variance.
        return_dropout_mask: also return what was kept of x and of x1, bool [..., D] or None.

    Returns:
        [..., D] in the dtype of x. Where asked for, in this order: the second norm, the stream in
        the dtype of ``residual``, the two masks.
    """
    masks = [
        torch.rand_like(t, dtype=torch.float32) >= dropout_p
        if t is not None and dropout_p > 0
        else None
        for t in (x, x1)
    ]
    total = _sum(x, residual, x1, dropout_p, rowscale, *masks)
    results = _norms(total, x.dtype, weight, bias, weight1, bias1, eps, is_rms_norm)
    if prenorm:
        dtype = torch.float32 if residual_in_fp32 else x.dtype
        results.append(total.to(dtype if residual is None else residual.dtype))
    if return_dropout_mask:
        results += masks
    return results[0] if len(results) == 1 else tuple(results)


def _sum(
    x: Tensor,
    residual: Tensor | None,
    x1: Tensor | None,
    dropout_p: float,
    rowscale: Tensor | None,
    mask: Tensor | None,
    mask1: Tensor | None,
) -> Tensor:
    """What is normalised, at least in float32."""
    if x1 is not None and rowscale is not None:
        raise ZooError("layer_norm_fn: rowscale and x1 exclude each other; give one of them")
    total = at_least_fp32(x)
    total = total if rowscale is None else total * rowscale[..., None]
    total = total if mask is None else total * mask / (1 - dropout_p)
    if x1 is not None:
        other = at_least_fp32(x1)
        total = total + (other if mask1 is None else other * mask1 / (1 - dropout_p))
    return total if residual is None else total + at_least_fp32(residual)


def _norms(
    total: Tensor,
    dtype: torch.dtype,
    weight: Tensor,
    bias: Tensor | None,
    weight1: Tensor | None,
    bias1: Tensor | None,
    eps: float,
    is_rms_norm: bool,
) -> list[Any]:
    def norm(w: Tensor, b: Tensor | None) -> Tensor:
        w, b = w.to(total.dtype), None if b is None else b.to(total.dtype)
        if not is_rms_norm:
            return F.layer_norm(total, w.shape, w, b, eps).to(dtype)
        out = F.rms_norm(total, w.shape, w, eps)
        return (out if b is None else out + b).to(dtype)

    return [norm(weight, bias), *([] if weight1 is None else [norm(weight1, bias1)])]


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
) -> Any:
    """:func:`layer_norm_fn` with ``is_rms_norm``."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm,
        residual_in_fp32, is_rms_norm=True, return_dropout_mask=return_dropout_mask,
    )  # fmt: skip


def layer_norm_ref(
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
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
    *,
    is_rms_norm: bool = False,
) -> Any:
    """:func:`layer_norm_fn` with given masks; ``upcast``: the stream comes back in float32."""
    masks = [
        torch.rand_like(t, dtype=torch.float32) >= dropout_p
        if t is not None and mask is None and dropout_p > 0
        else mask
        for t, mask in ((x, dropout_mask), (x1, dropout_mask1))
    ]
    total = _sum(x, residual, x1, dropout_p, rowscale, *masks)
    results = _norms(total, x.dtype, weight, bias, weight1, bias1, eps, is_rms_norm)
    if prenorm:
        results.append(total if upcast else total.to(x.dtype))
    return results[0] if len(results) == 1 else tuple(results)


rms_norm_ref = functools.partial(layer_norm_ref, is_rms_norm=True)


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`layer_norm_fn`, and a linear layer on the normed sum."""
    out, stream = layer_norm_fn(
        x, norm_weight, norm_bias, residual, eps=eps, prenorm=True,
        residual_in_fp32=residual_in_fp32, is_rms_norm=is_rms_norm,
    )  # fmt: skip
    out = F.linear(out.to(linear_weight.dtype), linear_weight, linear_bias)
    return (out, stream) if prenorm else out


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
