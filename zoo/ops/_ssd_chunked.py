"""The scan of Mamba-2 in PyTorch, chunk by chunk: what answers where no kernel is compiled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """:func:`zoo.ops.ssd` with final step sizes: one masked matrix product a chunk, O(L Q) work.

    Args:
        x, B, C, z, seq_idx, reverse: as there.
        dt, A, initial_state: as there, in the dtype of the state.
        D: [H, P], in the dtype of the state.
        chunk_size: Q.

    Returns:
        the output [B, L, H, P] in the dtype of x and the last state [B, H, P, N].
    """
    dtype, length, groups = x.dtype, x.shape[1], B.shape[2]
    x, B, C = (t.to(dt.dtype) for t in (x, B, C))
    log_decay = dt * A  # [B, L, H]
    X = x * dt[..., None]

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

    state = gain.new_zeros(gain[:, 0].shape)
    if initial_state is not None:
        state = initial_state.unflatten(1, (groups, -1))
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
    y = y if D is None else y + x * D
    y = y if z is None else y * F.silu(z.to(y.dtype))
    return y.to(dtype), state.flatten(1, 2)


def _segments(
    seq_idx: Tensor, Q: int, pad: int, visible: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What may pass in a packed batch: step to step, border to step, step to border, through."""
    changes = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).float(), (1, 0)).cumsum(1)
    ids = F.pad(changes[:, None], (0, pad), mode="replicate")[:, 0]
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
