"""``mamba_ssm.ops.triton.ssd_combined``: the scan of Mamba-2, its whole inner block, references."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.compat.layernorm_gated import rmsnorm_fn
from zoo.compat.ssd_chunks import _chunk_cumsum_fwd, chunk_scan, chunk_state, state_passing
from zoo.errors import ZooError
from zoo.ops import causal_conv1d, selective_scan
from zoo.ops.ssd import ssd

__all__ = [
    "mamba_chunk_scan",
    "mamba_chunk_scan_combined",
    "mamba_conv1d_scan_ref",
    "mamba_split_conv1d_scan_combined",
    "mamba_split_conv1d_scan_ref",
    "ssd_chunk_scan_combined_ref",
    "ssd_selective_scan",
]


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


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """:func:`mamba_chunk_scan_combined` without states, step by step from its parts."""
    total, dt = _chunk_cumsum_fwd(dt, A, chunk_size, dt_bias, dt_softplus)
    states = chunk_state(B, x, dt, total)
    before = state_passing(states.flatten(-2), total[..., -1])[0].view_as(states)
    return chunk_scan(B, C, x, dt, total, before, D, z)


ssd_chunk_scan_combined_ref = mamba_chunk_scan


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> Tensor:
    """The same through the scan of Mamba-1, which allows more.

    Args:
        x: ``[B, L, H, P]``.
        dt: ``[B, L, H]`` or ``[B, L, H, P]``.
        A: ``[H]`` or ``[H P, N]``.
        B, C: ``[B, L, G, N]``.
        D, dt_bias: ``[H]`` or ``[H, P]``.
        z: ``[B, L, H, P]``.
        dt_softplus, dt_limit: as for :func:`mamba_chunk_scan_combined`.

    Returns:
        ``[B, L, H, P]``.
    """
    heads, width = x.shape[2:]

    def per_channel(t: Tensor | None) -> Tensor | None:  # [H] or [H, P] -> [H P]
        t = t[:, None].expand(-1, width) if t is not None and t.dim() == 1 else t
        return None if t is None else t.reshape(-1)

    def rows(t: Tensor) -> Tensor:  # [B, L, H, P] -> [B, H P, L]
        return t.flatten(2).transpose(1, 2)

    dt = rows(dt[..., None].expand(-1, -1, -1, width) if dt.dim() == 3 else dt)
    if A.dim() == 1:
        A = A.float()[:, None, None].expand(-1, width, B.shape[-1]).flatten(0, 1)
    bias = per_channel(dt_bias)
    if dt_limit != (0.0, float("inf")):
        dt = dt if bias is None else dt + bias[:, None]
        dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit).to(x.dtype)
        bias, dt_softplus = None, False
    B, C = (t.permute(0, 2, 3, 1) for t in (B, C))  # [B, G, N, L]
    out: Any = selective_scan(
        rows(x), dt, A.float(), B, C, per_channel(D), None if z is None else rows(z), bias,
        dt_softplus,
    )  # fmt: skip
    return out.transpose(1, 2).unflatten(-1, (heads, width))


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Convolution and :func:`ssd_selective_scan`.

    Args:
        xBC: ``[B, L, D + 2 G N]``.
        conv1d_weight, conv1d_bias, activation: see :func:`mamba_split_conv1d_scan_combined`.
        dt: ``[B, L, H]`` or ``[B, L, H, P]``.
        z: ``[B, L, D]``.
        A, chunk_size, D, dt_bias, dt_softplus, dt_limit: see :func:`ssd_selective_scan`.
        headdim: P, where neither z nor D tells it.
        ngroups: G.

    Returns:
        ``[B, L, D]``.
    """
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ZooError("mamba_conv1d_scan_ref: neither z nor D has heads, so headdim is needed")
    convolved: Any = causal_conv1d(
        xBC.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation
    )
    dim = heads * headdim
    width = (xBC.shape[-1] - dim) // 2
    x, B, C = convolved.transpose(1, 2).split([dim, width, width], dim=-1)
    B, C = (t.unflatten(-1, (ngroups, -1)) for t in (B, C))
    out = ssd_selective_scan(
        x.unflatten(-1, (heads, -1)), dt.to(x.dtype), A, B, C,
        None if D is None else D.float(), None if z is None else z.unflatten(-1, (heads, -1)),
        dt_bias, dt_softplus, dt_limit,
    )  # fmt: skip
    return out.flatten(2)


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """:func:`mamba_split_conv1d_scan_combined` by :func:`ssd_selective_scan`, norm ungrouped."""
    heads = D.shape[0]
    headdim = D.shape[1] if D.dim() == 2 else headdim
    if headdim is None:
        raise ZooError("mamba_split_conv1d_scan_ref: D has one dimension, so headdim is needed")
    dim = heads * headdim
    z, xBC, dt = zxbcdt.split([dim, zxbcdt.shape[-1] - dim - heads, heads], dim=-1)
    out = mamba_conv1d_scan_ref(
        xBC, conv1d_weight, conv1d_bias, dt, A, chunk_size, D,
        z if rmsnorm_weight is None else None, dt_bias, True, dt_limit, activation, headdim,
        ngroups,
    )  # fmt: skip
    if rmsnorm_weight is not None:
        out = rmsnorm_fn(out, rmsnorm_weight, None, z, rmsnorm_eps, None, norm_before_gate)
    return out if outproj_weight is None else F.linear(out, outproj_weight, outproj_bias)


def _check_state_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32):
        raise ZooError(f"state_dtype is float32 here, not {dtype}")
