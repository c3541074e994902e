"""The steps of Mamba-2's scan (arXiv 2405.21060, section 6), as mamba_ssm has them.

``mamba_ssm.ops.triton.ssd_chunk_state``, ``ssd_state_passing``, ``ssd_chunk_scan`` and
``modules.ssd_minimal``. They are PyTorch, differentiable, and meant to be looked at and tested;
:func:`zoo.ops.ssd` does it all at once. T steps stand in C chunks of K; the last chunk may have a
rest, whose step sizes are 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError

__all__ = [
    "chunk_scan",
    "chunk_scan_ref",
    "chunk_state",
    "chunk_state_ref",
    "chunk_state_varlen",
    "segsum",
    "ssd_minimal_discrete",
    "state_passing",
    "state_passing_ref",
]


def _in_chunks(x: Tensor, chunks: int, size: int) -> Tensor:
    """``[B, T, ...]`` -> ``[B, C, K, ...]``, zeros behind the end."""
    rest = chunks * size - x.shape[1]
    if rest < 0:
        raise ZooError(f"{x.shape[1]} steps do not fit into {chunks} chunks of {size}")
    return F.pad(x, [0] * (2 * (x.dim() - 2)) + [0, rest]).unflatten(1, (chunks, size))


def _per_head(x: Tensor, heads: int) -> Tensor:
    """``[B, T, G, N]`` -> ``[B, T, H, N]``."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def _masked_exp(sums: Tensor) -> Tensor:
    """exp where the last index but one is not before the last, else 0."""
    size = sums.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=sums.device).tril()
    return sums.masked_fill(~below, -torch.inf).exp()


def segsum(x: Tensor) -> Tensor:
    """Sums of x ``[..., T]`` from behind s to t, ``[..., t, s]``; -inf where s is behind t."""
    size = x.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=x.device)
    # Each sum by itself: differences of a running one lose digits.
    steps = x[..., None].expand(*x.shape, size).masked_fill(~ones.tril(-1), 0)
    return steps.cumsum(-2).masked_fill(~ones.tril(), -torch.inf)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan as listing 1 of the paper gives it.

    Args:
        X: inputs times step sizes ``[B, T, H, P]``.
        A: logarithm of the decay ``[B, T, H]``.
        B, C: ``[B, T, H, N]``.
        block_len: K, which divides T.
        initial_states: ``[B, 1, H, P, N]``.

    Returns:
        ``[B, T, H, P]`` and the final states ``[B, H, P, N]``.
    """
    blocks, rest = divmod(X.shape[1], block_len)
    if rest:
        raise ZooError(f"block_len {block_len} does not divide {X.shape[1]} steps")
    X, A, B, C = (t.unflatten(1, (blocks, block_len)) for t in (X, A, B, C))
    A = A.permute(0, 3, 1, 2)  # [B, H, C, K]
    total = A.cumsum(-1)
    inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, segsum(A).exp(), X)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, (total[..., -1:] - total).exp(), X)
    first = torch.zeros_like(states[:, :1]) if initial_states is None else initial_states
    decay = segsum(F.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", decay, torch.cat([first, states], dim=1))
    before = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states[:, :-1], total.exp())
    return (inside + before).flatten(1, 2), states[:, -1]


def _chunk_cumsum_fwd(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """dt ``[B, T, H]``, A ``[H]`` -> sums of dt A in each chunk, and dt, ``[B, H, C, K]``."""
    dt = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    chunks = -(-dt.shape[1] // chunk_size)
    dt = _in_chunks(dt, chunks, chunk_size).permute(0, 3, 1, 2)
    return (dt * A.float()[:, None, None]).cumsum(-1), dt


def _chunk_state_fwd(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    seq_idx: Tensor | None = None,
    states: Tensor | None = None,
    states_in_fp32: bool = True,
) -> Tensor:
    """:func:`chunk_state`; with ``seq_idx`` ``[B, T]`` only of a chunk's last packed sequence."""
    chunks, size = dt.shape[2:]
    weight = (dA_cumsum[..., -1:] - dA_cumsum).exp() * dt  # [B, H, C, K]
    if seq_idx is not None:
        ends = torch.arange(1, chunks + 1, device=x.device) * size
        last = seq_idx[:, ends.clamp(max=seq_idx.shape[1]) - 1]  # [B, C]
        weight = weight * (_in_chunks(seq_idx, chunks, size) == last[..., None])[:, None]
    heads = x.shape[2]
    B = _in_chunks(_per_head(B, heads), chunks, size).float()
    x = _in_chunks(x, chunks, size).float()
    found = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, weight.float(), x)
    found = found if states_in_fp32 else found.to(B.dtype)
    return found if states is None else states.copy_(found)


def chunk_state(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True
) -> Tensor:
    """The state that each chunk adds up from zero.

    Args:
        B: ``[B, T, G, N]``.
        x: ``[B, T, H, P]``.
        dt, dA_cumsum: ``[B, H, C, K]``, of :func:`_chunk_cumsum_fwd`.
        states_in_fp32: else in the dtype of B.

    Returns:
        ``[B, C, H, P, N]``.
    """
    return _chunk_state_fwd(B, x, dt, dA_cumsum, states_in_fp32=states_in_fp32)


def chunk_state_ref(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor) -> Tensor:
    """:func:`chunk_state`, in the dtype of x."""
    return _chunk_state_fwd(B, x, dt, dA_cumsum).to(x.dtype)


def chunk_state_varlen(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, cu_seqlens: Tensor, chunk_states: Tensor
) -> Tensor:
    """The state at the end of each packed sequence.

    Args:
        B: ``[T, G, N]``.
        x: ``[T, H, P]``.
        dt, dA_cumsum: ``[H, C, K]``.
        cu_seqlens: ``[S + 1]``, where each sequence starts.
        chunk_states: ``[C, H, P, N]``, the state before each chunk.

    Returns:
        ``[S, H, P, N]`` in the dtype of ``chunk_states``.
    """
    size = dt.shape[-1]
    B = B.repeat_interleave(x.shape[1] // B.shape[1], dim=1).float()
    states = torch.zeros(len(cu_seqlens) - 1, *chunk_states.shape[1:], device=x.device)
    bounds = cu_seqlens.tolist()
    for state, start, end in zip(states, bounds, bounds[1:], strict=False):
        if end == start:
            continue
        chunk, last = divmod(end - 1, size)
        first = max(start, chunk * size)
        span = slice(first - chunk * size, last + 1)
        total = dA_cumsum[:, chunk, : last + 1]  # [H, last + 1]
        weight = (total[:, -1:] - total).exp()[:, span] * dt[:, chunk, span]
        state += torch.einsum("thn,ht,thp->hpn", B[first:end], weight, x[first:end].float())
        if start < chunk * size:
            state += total[:, -1, None, None].exp() * chunk_states[chunk].float()
    return states.to(chunk_states.dtype)


def _state_passing_fwd(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`state_passing`; with ``seq_idx`` ``[B, T]`` not from a packed sequence to the next."""
    chunks = states.shape[1]
    state = torch.zeros_like(states[:, 0], dtype=torch.float32)
    if initial_states is not None:
        state = initial_states.float()
    if seq_idx is not None and chunk_size is None:
        raise ZooError("state_passing: seq_idx needs chunk_size")
    owner = dA_chunk_cumsum.new_zeros(len(states))  # the sequence that the state is of
    before = []
    for chunk in range(chunks):
        before.append(state)
        decay = dA_chunk_cumsum[:, :, chunk, None].float().exp()
        if seq_idx is not None and chunk_size is not None:
            last = seq_idx[:, min((chunk + 1) * chunk_size, seq_idx.shape[1]) - 1]
            decay = decay * last.eq(owner)[:, None, None]
            owner = last
        state = decay * state + states[:, chunk].float()
    return torch.stack(before, dim=1).to(out_dtype or states.dtype), state


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, from those that the chunks add.

    Args:
        states: ``[B, C, H, D]``.
        dA_chunk_cumsum: logarithm of each chunk's decay ``[B, H, C]``.
        initial_states: ``[B, H, D]``.

    Returns:
        ``[B, C, H, D]`` and the state behind the last chunk, ``[B, H, D]`` float32.
    """
    return _state_passing_fwd(states, dA_chunk_cumsum, initial_states)


def state_passing_ref(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`state_passing` as one matrix product, in the dtype of ``states``."""
    first = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states
    decay = segsum(F.pad(dA_chunk_cumsum, (1, 0))).exp().to(states.dtype)
    out = torch.einsum("bhzc,bchd->bzhd", decay, torch.cat([first[:, None], states], dim=1))
    return out[:, :-1], out[:, -1]


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Outputs from the inputs of each chunk and the state before it.

    Args:
        B, C: ``[B, T, G, N]``.
        x: ``[B, T, H, P]``.
        dt, dA_cumsum: ``[B, H, C, K]``.
        prev_states: ``[B, C, H, P, N]``.
        D: ``[H]`` or ``[H, P]``.
        z: ``[B, T, H, P]``.

    Returns:
        ``[B, T, H, P]`` in the dtype of x.
    """
    chunks, size = dt.shape[2:]
    heads, length = x.shape[2], x.shape[1]
    b, c = (_in_chunks(_per_head(t, heads), chunks, size).float() for t in (B, C))
    values = _in_chunks(x, chunks, size).float()
    decay = _masked_exp(dA_cumsum[..., :, None] - dA_cumsum[..., None, :])  # [B, H, C, K, K]
    scores = torch.einsum("bclhn,bcshn->bhcls", c, b) * decay * dt[..., None, :]
    out = torch.einsum("bhcls,bcshp->bclhp", scores, values)
    before = torch.einsum("bclhn,bchpn->bclhp", c, prev_states.float())
    out = out + before * dA_cumsum.exp().permute(0, 2, 3, 1)[..., None]
    out = out.flatten(1, 2)[:, :length]
    if D is not None:
        out = out + x.float() * (D if D.dim() == 2 else D[:, None])
    return (out if z is None else out * F.silu(z.float())).to(x.dtype)


chunk_scan_ref = chunk_scan
