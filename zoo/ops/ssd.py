"""The scan of Mamba-2: one decay per head, computed chunk by chunk with matrix products."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import FLOATS
from zoo.ops._library import recording, register
from zoo.ops._ssd_chunked import ssd_chunked
from zoo.ops.delta_rule import linear_attention
from zoo.ops.selective_scan import is_negative


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
    eig_range: str = "01",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Selective scan with one decay per head (SSD; Mamba-2, arXiv 2405.21060, sections 6 and 7).

    .. math::
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \qquad
        y_t = h_t C_t + D x_t, \qquad out_t = y_t \cdot \mathrm{silu}(z_t)

    Inside a chunk of steps this is one masked matrix product, between chunks a recurrence: nothing
    of size L·P·N is ever made.

    Args:
        x: input [B, L, H, P].
        dt: step sizes [B, L, H].
        A: decay rate of each head [H], negative.
        B: input projection [B, L, G, N]; head h uses group h // (H / G).
        C: output projection [B, L, G, N].
        chunk_size: steps of a chunk where PyTorch alone answers; the kernels have their own, and
            the result does not depend on it.
        D: skip weight [H] or [H, P].
        z: gate [B, L, H, P].
        dt_bias: added to dt [H].
        initial_states: state before the first step [B, H, P, N].
        seq_idx: integers [B, L], the packed sequence that a step belongs to; no state passes to a
            step from one of another number.
        dt_softplus: apply softplus to dt (after the bias).
        dt_limit: dt is clamped to this range at last.
        return_final_states: also return the state after the last step, [B, H, P, N] float32.
        reverse: run from the last step to the first, without copying anything; the final state is
            then the one after step 0.
        eig_range: "01", or "pm1": the decay is :math:`2 e^{\Delta A} - 1`, as that of
            :func:`zoo.ops.selective_scan`; :func:`zoo.ops.linear_attention` answers, in float32.

    Returns:
        [B, L, H, P] in the dtype of x. Everything between is float32 (float64 if x is). Outputs and
        final states are differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size)
    if is_negative("ssd", eig_range):
        found = _negative(
            x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_limit, reverse
        )
        return found if return_final_states else found[0]
    signals = [t for t in (x, B, C, z) if t is not None]
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in signals))
    compute = torch.promote_types(dtype, torch.float32)
    with without_autocast(x):
        dt, A = dt.to(compute), A.to(compute)
        D, dt_bias, initial_states = (
            None if t is None else t.to(compute) for t in (D, dt_bias, initial_states)
        )
        dt = _step_sizes(dt, dt_bias, dt_softplus, dt_limit).contiguous()
    D = D if D is None or D.dim() == 2 else D[:, None].expand(x.shape[2:])
    tensors = (
        _last_contiguous(x, dtype),
        dt,
        A.contiguous(),
        _last_contiguous(B, dtype),
        _last_contiguous(C, dtype),
        D if D is None or D.stride(1) == 0 else D.contiguous(),
        _last_contiguous(z, dtype),
        None if initial_states is None else initial_states.contiguous(),
    )
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, state, _ = torch.ops.zoo.ssd(
        *tensors,
        None if seq_idx is None else seq_idx.to(torch.int32).contiguous(),
        reverse,
        _span(x) if needs_grad else 0,
        chunk_size,
    )
    out = out.to(x.dtype)
    return (out, state) if return_final_states else out


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
    eig_range: str = "01",
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`ssd` one step after the other, to be read and to be compared with."""
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size)
    negative = is_negative("ssd", eig_range)
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
        decay = 2 * decay - 1 if negative else decay
        h = decay * h + (dt[:, t, :, None] * X[:, t])[..., None] * B[:, t, :, None, :]
        ys[t] = (h * C[:, t, :, None, :]).sum(-1)
        last = t
    y = torch.stack(ys, dim=1)
    y = y if D is None else y + X * D.reshape(heads, -1)
    y = (y if z is None else y * F.silu(z)).to(x.dtype)
    return (y, h if h.dtype == torch.float64 else h.float()) if return_final_states else y


def _negative(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
    softplus: bool,
    limit: tuple[float, float],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """With decays from (-1, 1): they have no logarithm, which the chunks of :func:`ssd` need."""
    with without_autocast(x):
        X, dt, A, B, C, D, z, dt_bias, state = _to_compute(x, dt, A, B, C, D, z, dt_bias, state)
        dt = _step_sizes(dt, dt_bias, softplus, limit)
        decay = 2 * torch.exp(dt * A) - 1  # [B, L, H]
        if seq_idx is not None:
            begins = seq_idx[:, 1:] != seq_idx[:, :-1]
            begins = F.pad(begins, (0, 1) if reverse else (1, 0))
            decay = decay.masked_fill(begins[..., None], 0)
        per_group = x.shape[2] // B.shape[2]
        B, C = B.repeat_interleave(per_group, 2), C.repeat_interleave(per_group, 2)
        q, k, v, decay = (t.flip(1) if reverse else t for t in (C, B, X * dt[..., None], decay))
        state = None if state is None else state.mT  # [B, H, N, P]
        y, state = linear_attention(q, k, v, decay, initial_state=state, return_final_state=True)
        y = y.flip(1) if reverse else y
        y = y if D is None else y + X * D.reshape(x.shape[2], -1)
        y = (y if z is None else y * F.silu(z)).to(x.dtype)
    return y, state.mT.contiguous()


def _to_compute(x: Tensor, *others: Tensor | None) -> list:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [None if t is None else t.to(dtype) for t in (x, *others)]


def _step_sizes(
    dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float]
) -> Tensor:
    dt = dt if bias is None else dt + bias
    dt = F.softplus(dt) if softplus else dt
    return dt if limit == (0.0, float("inf")) else dt.clamp(*limit)


def _check(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, chunk_size) -> None:
    if x.dim() != 4 or B.dim() != 4 or 0 in (*x.shape[1:], B.shape[3]):
        raise ZooError(
            f"ssd takes x [B, L, H, P] and B, C [B, L, G, N], where only B may be 0, "
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
    for name, (tensor, shape) in {"x": (x, tuple(x.shape)), **expected}.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ZooError(f"ssd: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.device != x.device:
            raise ZooError(
                f"ssd: {name} is on {tensor.device} and x on {x.device}; move them to one device"
            )
        if name == "seq_idx":
            if tensor.is_floating_point() or tensor.is_complex():
                raise ZooError(f"ssd: seq_idx must be integers, got {tensor.dtype}")
        elif tensor.dtype not in FLOATS:
            raise ZooError(
                f"ssd: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}"
            )


def _span(x: Tensor) -> int:
    """Steps between the states that the forward pass leaves for the backward pass: kSsdSpan."""
    return 64 if x.device.type == "cuda" else 256


def _last_contiguous(t: Tensor | None, dtype: torch.dtype) -> Any:
    if t is None:
        return None
    t = t.to(dtype)
    return t if t.stride(-1) == 1 else t.contiguous()


def _reference(
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
    span: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out, state = ssd_chunked(x, dt, A, B, C, D, z, initial_state, seq_idx, reverse, chunk_size)
    return out.contiguous(), state.contiguous(), _borders(x, dt, B, span).zero_()


def _reference_backward(
    dout: Tensor | None, dlast_state: Tensor | None, borders: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    given, settings = arguments[:8], arguments[8:]
    grads = _gradients(*given)
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in given]
        out, state, _ = _reference(*leaves, *settings)
        doutputs = [
            torch.zeros_like(o) if d is None else d for o, d in ((out, dout), (state, dlast_state))
        ]
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad((out, state), wanted, doutputs, materialize_grads=True))
    for grad, t in zip(grads, leaves, strict=True):
        if t is not None:
            grad.copy_(next(found))
    return grads


def _borders(x: Tensor, dt: Tensor, B: Tensor, span: int) -> Tensor:
    batch, length, heads, head_dim = x.shape
    shape = (batch, -(-length // span), heads, head_dim * B.shape[3]) if span else (0,)
    return dt.new_empty(shape)


def _gradients(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, ...]:
    """Memory for all gradients; without elements for what is absent."""
    return tuple(
        dt.new_empty(0) if t is None else t.new_empty(t.shape)
        for t in (x, dt, A, B, C, D, x.new_empty(0) if z is None else z, initial_state)
    )


def _fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    state = dt.new_empty(x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    return x.new_empty(x.shape), state, _borders(x, dt, B, rest[-2])


register(
    "ssd",
    check=lambda x, *others: _registered.ssd(_span(x), x, *others),
    reference=_reference,
    fake=_fake,
)
register(
    "ssd_backward",
    check=lambda *given: _registered.ssd_backward(_span(given[3]), *given),
    reference=recording(_reference_backward),
    fake=lambda dout, dlast_state, borders, *rest: _gradients(*rest[:8]),
)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    borders = output[2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(borders)
    ctx.save_for_backward(borders, *inputs[:9])
    ctx.settings = inputs[9:]


def _backward(
    ctx: Any, dout: Tensor | None, dstate: Tensor | None, dborders: None
) -> tuple[Tensor | None, ...]:
    if dout is None and dstate is None:
        return (None,) * 12
    if dout is not None and dout.stride(-1) != 1:
        dout = dout.contiguous()
    grads = torch.ops.zoo.ssd_backward(
        dout, None if dstate is None else dstate.contiguous(), *ctx.saved_tensors, *ctx.settings
    )
    wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError("ssd has no second derivative; ssd_reference, which is slower, has")


torch.library.register_autograd("zoo::ssd", _backward, setup_context=_keep)
torch.library.register_autograd("zoo::ssd_backward", _no_second_derivative)
