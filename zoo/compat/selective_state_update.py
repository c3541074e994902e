"""``mamba_ssm.ops.triton.selective_state_update``: one step of the scan, with or without heads."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import selective_state_update as update
from zoo.ops import selective_state_update_reference

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """:func:`zoo.ops.selective_state_update`, for a pool of states as well.

    Args:
        state: [B, D, N] or [B, H, P, N], changed in place; with ``state_batch_indices`` a pool of
            them, [S, ...].
        x, dt, A, B, C, D, z, dt_bias, dt_softplus: as there.
        state_batch_indices: [B] the state of each row in the pool; a negative one is padding: its
            output is 0 and no state changes.
    """
    if state_batch_indices is None:
        return update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    if state_batch_indices.shape != x.shape[:1]:
        raise ZooError(
            f"state_batch_indices has shape {tuple(state_batch_indices.shape)}, "
            f"expected ({len(x)},)"
        )
    used = state_batch_indices >= 0
    rows = state_batch_indices[used].long()
    states = state[rows]
    gate = None if z is None else z[used]
    out = torch.zeros_like(x)
    out[used] = update(
        states, x[used], dt[used], A, B[used], C[used], D, gate, dt_bias, dt_softplus
    )
    state[rows] = states
    return out


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """:func:`zoo.ops.selective_state_update_reference`."""
    return selective_state_update_reference(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
