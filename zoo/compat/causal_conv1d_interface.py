"""``causal_conv1d``: the short convolution, its decode step, and the states of packed sequences.

Arguments and names are those of causal_conv1d 1.7, without its limits on layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update_reference,
)
from zoo.ops import causal_conv1d_update as update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`zoo.ops.causal_conv1d`; the final states are also written to ``final_states_out``.

    With ``seq_idx``, the initial states belong to the sequence of the first position.
    """
    return _convolve(
        causal_conv1d, x, weight, bias, seq_idx, initial_states, return_final_states,
        final_states_out, activation,
    )  # fmt: skip


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`causal_conv1d_fn` on :func:`zoo.ops.causal_conv1d_reference`."""
    return _convolve(
        causal_conv1d_reference, x, weight, bias, seq_idx, initial_states, return_final_states,
        final_states_out, activation,
    )  # fmt: skip


def _convolve(
    op: Callable[..., Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    return_final_states: bool,
    final_states_out: Tensor | None,
    activation: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    before = 0
    if seq_idx is not None and initial_states is not None:
        # The op knows no such states: they are positions of the first sequence before it.
        before = initial_states.shape[2]
        x = torch.cat([initial_states.to(x.dtype), x], dim=2)
        seq_idx = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], dim=1)
        initial_states = None
    result: Any = op(x, weight, bias, seq_idx, initial_states, return_final_states, activation)
    out: Tensor = result[0] if return_final_states else result
    if before:
        out = out[..., before:]
    if not return_final_states:
        return out
    states: Tensor = result[1]
    return out, states if final_states_out is None else final_states_out.copy_(states)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """:func:`zoo.ops.causal_conv1d_update`, for a pool of states as well.

    Args:
        x: [B, D] or [B, D, L].
        conv_state: [B, D, S], changed in place; with ``conv_state_indices`` [P, D, S].
        weight, bias, activation, cache_seqlens: as there.
        conv_state_indices: [B] the state of each sequence in the pool; a negative one is padding:
            its output is 0 and no state changes.
    """
    if conv_state_indices is None:
        return update(x, conv_state, weight, bias, activation, cache_seqlens)
    if conv_state_indices.shape != x.shape[:1]:
        raise ZooError(
            f"conv_state_indices has shape {tuple(conv_state_indices.shape)}, expected ({len(x)},)"
        )
    used = conv_state_indices >= 0
    rows = conv_state_indices[used].long()
    states = conv_state[rows]
    seqlens = None if cache_seqlens is None else cache_seqlens[used]
    out = torch.zeros_like(x)
    out[used] = update(x[used], states, weight, bias, activation, seqlens)
    conv_state[rows] = states
    return out


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """:func:`zoo.ops.causal_conv1d_update_reference`."""
    return causal_conv1d_update_reference(x, conv_state, weight, bias, activation, cache_seqlens)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of each of several packed sequences, zeros before the start of a short one.

    Args:
        x: [T, D], one sequence after the other.
        cu_seqlens: [B + 1] where each starts, and T at the end.
        state_len: S.

    Returns:
        [B, D, S].
    """
    start, end = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    rows = end + torch.arange(-state_len, 0, device=x.device)  # [B, S]
    states = x[rows.clamp(min=0)].masked_fill((rows < start)[..., None], 0)  # [B, S, D]
    return states.transpose(1, 2)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """:func:`causal_conv1d_varlen_states`, one sequence after the other."""
    states = x.new_zeros(len(cu_seqlens) - 1, x.shape[1], state_len)
    bounds = cu_seqlens.tolist()
    for state, start, end in zip(states, bounds, bounds[1:], strict=False):
        kept = min(end - start, state_len)
        state[:, state_len - kept :] = x[end - kept : end].T
    return states
