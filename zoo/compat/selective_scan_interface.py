"""``mamba_ssm.ops.selective_scan_interface``: the scan of Mamba-1, and its whole inner block.

Arguments and names are those of mamba_ssm 2.3; ``mamba_inner_fn_no_out_proj`` and
``bimamba_inner_fn`` are those of Vision Mamba's and VMamba's branches of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops import (
    causal_conv1d,
    selective_scan,
    selective_scan_reference,
)

__all__ = [
    "bimamba_inner_fn",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`zoo.ops.selective_scan`; the gradient of the last state is not lost as it is there."""
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`zoo.ops.selective_scan_reference`."""
    return selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


class _Scan(NamedTuple):
    """What goes into the scan of a Mamba block."""

    x: Tensor  # [B, D, L]
    delta: Tensor  # [B, D, L]
    B: Tensor  # [D, N] or [B, N, L]
    C: Tensor
    z: Tensor  # [B, D, L]


def _inputs(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> _Scan:
    """Convolution and projections: from [B, 2D, L] to what the scan takes."""
    first, z = xz.chunk(2, dim=1)
    x: Any = causal_conv1d(first, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # [B, L, R (+ N) (+ N)]
    rank, width = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    delta = torch.matmul(delta_proj_weight, projected[..., :rank].transpose(1, 2))  # [B, D, L]
    if dt_rms_weight is not None:
        delta = _rms(delta.transpose(1, 2), dt_rms_weight, eps).transpose(1, 2)

    def varying(part: Tensor, bias: Tensor | None, weight: Tensor | None) -> Tensor:
        part = part if bias is None else part + bias.to(part.dtype)
        part = part if weight is None else _rms(part, weight, eps)
        if A.is_complex():  # [B, L, (N 2)] -> [B, N, (L 2)]
            return part.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2)
        return part.transpose(1, 2)  # [B, N, L]

    if B is None:
        B = varying(projected[..., rank : rank + width], B_proj_bias, b_rms_weight)
    if C is None:
        C = varying(projected[..., -width:], C_proj_bias, c_rms_weight)
    return _Scan(x, delta, B, C, z)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block from behind its first projection to the end.

    Args:
        xz: [B, 2D, L].
        conv1d_weight, conv1d_bias: [D, 1, W], [D].
        x_proj_weight: [R + 2N, D]; without the rows of B or C where those are given.
        delta_proj_weight: [D, R].
        out_proj_weight, out_proj_bias: [d_model, D], [d_model].
        A, B, C: [D, N]; B and C are projected from the input where they are None.
        D, delta_bias: [D].
        B_proj_bias, C_proj_bias: [N], added to the projected B and C.
        delta_softplus: softplus of the step size.
        checkpoint_lvl: taken and not needed; the results are the same at every level.
        b_rms_weight, c_rms_weight, dt_rms_weight: RMS norms of B [N], C [N] and delta [D].
        b_c_dt_rms_eps: their epsilon.

    Returns:
        [B, L, d_model].
    """
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    norms = b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps
    scan = _inputs(xz, *weights, A, B, C, B_proj_bias, C_proj_bias, *norms)
    rest = scan.B, scan.C, D, scan.z, delta_bias, delta_softplus
    y: Any = selective_scan(scan.x, scan.delta, A, *rest)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn`: theirs too is made of the convolution and the scan themselves."""
    return mamba_inner_fn(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight,
        out_proj_bias, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """:func:`mamba_inner_fn` without its last projection; returns [B, D, L]."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scan = _inputs(xz, *weights, A, B, C, B_proj_bias, C_proj_bias)
    rest = scan.B, scan.C, D, scan.z, delta_bias, delta_softplus
    y: Any = selective_scan(scan.x, scan.delta, A, *rest)
    return y


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn` with a second scan from the end to the start, with ``A_b``."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scan = _inputs(xz, *weights, A, B, C, B_proj_bias, C_proj_bias)
    rest = scan.B, scan.C, D, scan.z, delta_bias, delta_softplus
    forward: Any = selective_scan(scan.x, scan.delta, A, *rest)
    backward: Any = selective_scan(scan.x, scan.delta, A_b, *rest, reverse=True)
    y = forward + backward
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)
