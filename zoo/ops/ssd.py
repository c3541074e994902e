"""The scan of Mamba-2: one decay per head, computed chunk by chunk with matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 256,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    *,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Selective scan with one decay per head (SSD; Mamba-2, arXiv 2405.21060, sections 6 and 7).

    .. math::
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \qquad
        y_t = h_t C_t + D x_t, \qquad out_t = y_t \cdot \mathrm{silu}(z_t)

    Inside a chunk of Q steps this is one masked matrix product, between chunks a recurrence of
    length L/Q: O(L·Q) work and memory, nothing of size L·P·N.

    Args:
        x: input [B, L, H, P].
        dt: step sizes [B, L, H].
        A: decay rate of each head [H], negative.
        B: input projection [B, L, G, N]; head h uses group h // (H / G).
        C: output projection [B, L, G, N].
        chunk_size: Q; any L is fine, the last chunk is filled up with steps of size 0.
        D: skip weight [H] or [H, P].
        z: gate [B, L, H, P].
        dt_bias: added to dt [H].
        initial_states: state before the first step [B, H, P, N].
        seq_idx: [B, L] number of the packed sequence a step belongs to; states do not pass from one
            to the next.
        dt_softplus: apply softplus to dt (after the bias).
        dt_limit: dt is clamped to this range at last.
        return_final_states: also return the state after the last step, [B, H, P, N] float32.
        reverse: run from the last step to the first, without copying anything; the final state is
            then the one after step 0.

    Returns:
        [B, L, H, P] in the dtype of x. Everything between is float32 (float64 if x is).

    Raises:
        ZooError: if shapes do not fit.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size)
    length, heads, groups = x.shape[1], x.shape[2], B.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        X, dt, A, B, C, D, z, dt_bias, h = _to_compute(
            x, dt, A, B, C, D, z, dt_bias, initial_states
        )
        dt = _step_sizes(dt, dt_bias, dt_softplus, dt_limit)
        skip = None if D is None else X * D.reshape(heads, -1)
        log_decay = dt * A  # [B, L, H]
        X = X * dt[..., None]

        Q = min(chunk_size, length)
        pad = -length % Q
        X, B, C = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (X, B, C))
        log_decay = F.pad(log_decay, (0, 0, 0, pad))
        X = X.unflatten(1, (-1, Q)).unflatten(3, (groups, -1))  # [B, c, Q, G, R, P]
        B, C = B.unflatten(1, (-1, Q)), C.unflatten(1, (-1, Q))  # [B, c, Q, G, N]
        log_decay = log_decay.unflatten(1, (-1, Q)).unflatten(3, (groups, -1))  # [B, c, Q, G, R]

        # The decay from step j to step t is exp(p_t - p_j); walking backward, step t is not yet
        # decayed by itself, hence the exclusive sum.
        total = log_decay.cumsum(2)
        p = log_decay - total if reverse else total
        total = total[:, :, -1]  # [B, c, G, R]
        into = p + total[:, :, None] if reverse else p  # from the border to step t
        out_of = p[:, :, :1] if reverse else p[:, :, -1:]  # from step j to the other border

        span = torch.arange(Q, device=x.device)
        visible = span[:, None] <= span if reverse else span[:, None] >= span  # [t, j]
        within = p.movedim(2, -1)  # [B, c, G, R, Q]
        within = within[..., :, None] - within[..., None, :]  # [B, c, G, R, t, j]
        into_open, out_open, pass_open = None, None, None
        if seq_idx is not None:
            visible, into_open, out_open, pass_open = _segments(seq_idx, Q, pad, visible, reverse)
        within = within.masked_fill(~visible, float("-inf")).exp()

        scores = torch.einsum("bctgn,bcjgn->bcgtj", C, B)
        y = torch.einsum("bcgtj,bcgrtj,bcjgrp->bctgrp", scores, within, X)
        weight = (out_of - p).exp()
        if out_open is not None:
            weight = weight * out_open[..., None, None]
        gain = torch.einsum("bcjgn,bcjgr,bcjgrp->bcgrpn", B, weight, X)  # what a chunk adds
        keep = total.exp()
        if pass_open is not None:
            keep = keep * pass_open[..., None, None]

        state = gain.new_zeros(gain[:, 0].shape) if h is None else h.unflatten(1, (groups, -1))
        before = []
        chunks = range(gain.shape[1])
        for c in reversed(chunks) if reverse else chunks:
            before.append(state)
            state = keep[:, c, ..., None, None] * state + gain[:, c]
        entering = torch.stack(before[::-1] if reverse else before, dim=1)  # [B, c, G, R, P, N]
        weight = into.exp()
        if into_open is not None:
            weight = weight * into_open[..., None, None]
        y = y + torch.einsum("bctgn,bctgr,bcgrpn->bctgrp", C, weight, entering)

        y = y.flatten(3, 4).flatten(1, 2)[:, :length]  # [B, L, H, P]
        y = y if skip is None else y + skip
        y = (y if z is None else y * F.silu(z)).to(x.dtype)
        if not return_final_states:
            return y
        state = state.flatten(1, 2)
        return y, state if state.dtype == torch.float64 else state.float()


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 256,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    *,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`ssd` one step after the other, to be read and to be compared with."""
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size)
    batch, length, heads, head_dim = x.shape
    per_group = heads // B.shape[2]
    X, dt, A, B, C, D, z, dt_bias, h = _to_compute(x, dt, A, B, C, D, z, dt_bias, initial_states)
    dt = _step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    B, C = B.repeat_interleave(per_group, 2), C.repeat_interleave(per_group, 2)  # [B, L, H, N]
    if h is None:
        h = X.new_zeros(batch, heads, head_dim, B.shape[-1])
    ys = [X[:, 0]] * length
    last = None
    for t in reversed(range(length)) if reverse else range(length):
        if seq_idx is not None and last is not None:
            h = h * (seq_idx[:, t] == seq_idx[:, last])[:, None, None, None]
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        h = decay * h + (dt[:, t, :, None] * X[:, t])[..., None] * B[:, t, :, None, :]
        ys[t] = (h * C[:, t, :, None, :]).sum(-1)
        last = t
    y = torch.stack(ys, dim=1)
    y = y if D is None else y + X * D.reshape(heads, -1)
    y = (y if z is None else y * F.silu(z)).to(x.dtype)
    return (y, h if h.dtype == torch.float64 else h.float()) if return_final_states else y


def _to_compute(x: Tensor, *others: Tensor | None) -> list:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [None if t is None else t.to(dtype) for t in (x, *others)]


def _step_sizes(
    dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float]
) -> Tensor:
    dt = dt if bias is None else dt + bias
    dt = F.softplus(dt) if softplus else dt
    return dt if limit == (0.0, float("inf")) else dt.clamp(*limit)


def _segments(
    seq_idx: Tensor, Q: int, pad: int, visible: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What may pass in a packed batch: step to step, border to step, step to border, through."""
    ids = F.pad(seq_idx[:, None].float(), (0, pad), mode="replicate")[:, 0]
    ids = ids.unflatten(1, (-1, Q))  # [B, c, Q]
    # The segment that the entering state belongs to, and the one that the leaving state belongs to.
    first, last = ids[:, :, 0], ids[:, :, -1]
    leaving = first if reverse else last
    if reverse:
        entering = torch.cat([first[:, 1:], last[:, -1:]], dim=1)
    else:
        entering = torch.cat([first[:, :1], last[:, :-1]], dim=1)
    visible = visible & (ids[..., :, None] == ids[..., None, :])[:, :, None, None]
    into, out_of = ids == entering[..., None], ids == leaving[..., None]
    return visible, into, out_of, entering == leaving


def _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size) -> None:
    if x.dim() != 4 or B.dim() != 4 or 0 in x.shape:
        raise ZooError(
            f"ssd takes x [B, L, H, P] and B, C [B, L, G, N] without empty dimensions, "
            f"not x {tuple(x.shape)} and B {tuple(B.shape)}"
        )
    batch, length, heads, head_dim = x.shape
    groups, d_state = B.shape[2:]
    if groups == 0 or heads % groups:
        raise ZooError(f"ssd: {heads} heads cannot be divided among {groups} groups")
    if chunk_size < 1:
        raise ZooError(f"ssd: chunk_size is at least 1, not {chunk_size}")
    expected = {
        "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)),
        "B": (B, (batch, length, groups, d_state)),
        "C": (C, (batch, length, groups, d_state)),
        "D": (D, (heads,) if D is None or D.dim() == 1 else (heads, head_dim)),
        "z": (z, (batch, length, heads, head_dim)),
        "dt_bias": (dt_bias, (heads,)),
        "initial_states": (initial_states, (batch, heads, head_dim, d_state)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ZooError(f"ssd: {name} has shape {tuple(tensor.shape)}, expected {shape}")
