"""``mamba_ssm.ops.triton.ssd_combined``: the scan of Mamba-2, and its whole inner block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.compat.layernorm_gated import rmsnorm_fn
from zoo.errors import ZooError
from zoo.ops import causal_conv1d
from zoo.ops.ssd import ssd

__all__ = ["mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"]


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """:func:`zoo.ops.ssd.ssd`, and the states at the end of each of several packed sequences.

    Args:
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx: as there.
        cu_seqlens: [S + 1] where each packed sequence starts, for ``return_varlen_states``.
        dt_softplus, dt_limit, return_final_states: as there.
        return_varlen_states: also return the states [S, H, P, N] at the ends; the batch is 1.
        state_dtype: states are float32 here; anything else is refused.
    """
    _check_state_dtype(state_dtype)
    result: Any = ssd(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_limit,
        return_final_states,
    )  # fmt: skip
    if not return_varlen_states:
        return result
    if cu_seqlens is None or len(x) != 1:
        raise ZooError(f"return_varlen_states needs cu_seqlens and a batch of 1, not of {len(x)}")
    ends = []
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        part = [t[:, start:end] for t in (x, dt, B, C)]
        first = initial_states if start == 0 else None
        ends.append(
            ssd(
                part[0], part[1], A, part[2], part[3], chunk_size, None, None, dt_bias, first, None,
                dt_softplus, dt_limit, True,
            )[1]
        )  # fmt: skip
    states = torch.cat(ends)
    return (*result, states) if return_final_states else (result, states)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A Mamba-2 block from behind its first projection to the end.

    Args:
        zxbcdt: [B, L, 2 E + 2 D + 2 G N + H]: an MLP's two halves (E may be 0), gate, x, B, C, dt.
        conv1d_weight, conv1d_bias: [D + 2 G N, W], [D + 2 G N].
        dt_bias, A: [H].
        D: [H, P], or [H] with ``headdim`` = P.
        chunk_size, initial_states, seq_idx: see :func:`zoo.ops.ssd.ssd`.
        dt_limit, return_final_states: as there.
        activation: of the convolution.
        rmsnorm_weight, rmsnorm_eps, norm_before_gate: gated norm [D] in G groups; without it the
            gate is applied to the scan's output.
        outproj_weight, outproj_bias: [d_model, E + D], [d_model].
        ngroups: G.
        state_dtype: states are float32 here; anything else is refused.

    Returns:
        [B, L, d_model] ([B, L, E + D] without projection); the final states [B, H, P, N] if asked.
    """
    _check_state_dtype(state_dtype)
    if D.dim() == 1 and headdim is None:
        raise ZooError(
            "mamba_split_conv1d_scan_combined: D has one dimension, so headdim is needed"
        )
    heads = D.shape[0]
    dim = heads * (D.shape[1] if D.dim() == 2 else headdim or 0)
    d_conv = conv1d_weight.shape[0]
    d_mlp, odd = divmod(zxbcdt.shape[-1] - dim - d_conv - heads, 2)
    if d_mlp < 0 or odd or (d_conv - dim) % (2 * ngroups):
        raise ZooError(
            f"mamba_split_conv1d_scan_combined: zxbcdt has {zxbcdt.shape[-1]} channels, which do "
            f"not fit {heads} heads of {dim // heads}, {ngroups} groups and {d_conv} channels of "
            "the convolution"
        )
    mlp, z, xBC, dt = zxbcdt.split([2 * d_mlp, dim, d_conv, heads], dim=-1)
    convolved: Any = causal_conv1d(
        xBC.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx, activation=activation
    )
    d_state = (d_conv - dim) // (2 * ngroups)
    x, B, C = convolved.transpose(1, 2).split([dim, ngroups * d_state, ngroups * d_state], dim=-1)
    x, z_heads = x.unflatten(-1, (heads, -1)), z.unflatten(-1, (heads, -1))  # [B, L, H, P]
    B, C = (t.unflatten(-1, (ngroups, -1)) for t in (B, C))  # [B, L, G, N]
    out, states = ssd(
        x, dt, A, B, C, chunk_size, D, z_heads if rmsnorm_weight is None else None, dt_bias,
        initial_states, seq_idx, True, dt_limit, True,
    )  # fmt: skip
    out = out.flatten(-2)
    if rmsnorm_weight is not None:
        out = rmsnorm_fn(
            out, rmsnorm_weight, None, z, rmsnorm_eps, dim // ngroups, norm_before_gate
        )
    if d_mlp:
        gate, value = mlp.chunk(2, dim=-1)
        out = torch.cat([F.silu(gate) * value, out], dim=-1)
    if outproj_weight is not None:
        out = F.linear(out, outproj_weight, outproj_bias)
    return (out, states) if return_final_states else out


def _check_state_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32):
        raise ZooError(f"state_dtype is float32 here, not {dtype}")
