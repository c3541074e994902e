"""The selective scan of Mamba: a linear recurrence whose coefficients vary with time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def selective_scan(
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
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Selective scan (Mamba, arXiv 2312.00752, section 3.2 and algorithm 2).

    For every channel d with N states, :math:`\Delta = \mathrm{softplus}(delta + delta\_bias)`:

    .. math::
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \qquad
        y_t = C_t^\top h_t + D u_t, \qquad out_t = y_t \cdot \mathrm{silu}(z_t)

    Args:
        u: input [B, D, L].
        delta: step sizes [B, D, L].
        A: decay rates [D, N]; negative real parts, or the state grows.
        B: input projection, [D, N] (constant), [B, N, L] or [B, G, N, L]; channel d uses group
            d // (D / G).
        C: output projection, in one of the shapes of B.
        D: skip weight [D].
        z: gate [B, D, L].
        delta_bias: added to delta [D].
        delta_softplus: apply softplus to delta (after the bias).
        return_last_state: also return the state after the last step.
        initial_state: state before the first step [B, D, N]; zero if absent.
        reset: bool [B, L]; where True, no state passes into this step (packed sequences).
        reverse: run from step L-1 to step 0, without copying anything: the initial state then comes
            before step L-1, and the last state is the one after step 0.

    u, delta, z and B, C where they vary with time are float32, bfloat16 or float16, all of one
    dtype, and may have any strides; the parameters (A, D, delta_bias, constant B and C) and the
    initial state may be float32 with all of these. The state and all arithmetic are float32.
    float64 is there for checking, and then everything is float64. Under autocast, the sequences are
    brought to the widest dtype among them. A complex A takes the PyTorch reference; a variable B or
    C then holds interleaved real and imaginary parts, [B, N, 2 L] or [B, G, N, 2 L], and
    y = 2 Re(C h).

    Returns:
        [B, D, L] in the dtype of u; with ``return_last_state`` also the state [B, D, N] in float32
        (float64 or complex if A is). Both are differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or L is 0.
        RuntimeError: from the CPU kernel, if delta (with its bias) is not finite. On CUDA, where to
            look would mean to wait, NaN appears in the output instead.
    """
    u, delta, z, B, C = _autocast(u, delta, z, B, C)
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, reset)
    return selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state,
        initial_state=initial_state, reset=reset, reverse=reverse,
    )  # fmt: skip


def selective_scan_reference(
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
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`selective_scan` one step after the other, to be read and to be compared with."""
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, reset)
    with torch.autocast(u.device.type, enabled=False):
        dtype, state_dtype = u.dtype, _state_dtype(u, A)
        length = u.shape[2]
        u, delta = u.to(state_dtype.to_real()), delta.to(state_dtype.to_real())
        if delta_bias is not None:
            delta = delta + delta_bias.to(delta.dtype)[:, None]
        if delta_softplus:
            delta = F.softplus(delta)
        A = A.to(state_dtype)
        B, C = (_steps(M, A, length) for M in (B, C))  # L times [B or 1, D, N]
        du = delta * u  # [B, D, L]
        h = A.new_zeros(u.shape[0], *A.shape)  # [B, D, N]
        if initial_state is not None:
            h = initial_state.to(state_dtype)
        ys = [u[..., 0]] * length
        for t in reversed(range(length)) if reverse else range(length):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None, None], 0)
            h = torch.exp(delta[:, :, t, None] * A) * h + du[:, :, t, None] * B[t]
            y = (h * C[t]).sum(-1)  # [B, D]
            ys[t] = 2 * y.real if y.is_complex() else y
        y = torch.stack(ys, dim=2)  # [B, D, L]
        if D is not None:
            y = y + u * D.to(y.dtype)[:, None]
        if z is not None:
            y = y * F.silu(z.to(y.dtype))
    return (y.to(dtype), h) if return_last_state else y.to(dtype)


def _state_dtype(u: Tensor, A: Tensor) -> torch.dtype:
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype


def _steps(M: Tensor, A: Tensor, length: int) -> Sequence[Tensor]:
    """B or C in any of its shapes, as one [B or 1, D or 1, N] in the dtype of A for every step."""
    if M.dim() == 2:
        return [M.to(A.dtype)[None]] * length
    if A.is_complex():
        M = torch.view_as_complex(M.to(A.dtype.to_real()).unflatten(-1, (-1, 2)).contiguous())
    M = (M if M.dim() == 4 else M[:, None]).to(A.dtype)
    if M.shape[1] > 1:
        M = M.repeat_interleave(A.shape[0] // M.shape[1], dim=1)
    return M.movedim(-1, 0).contiguous().unbind()


def _autocast(u: Tensor, *others: Tensor | None) -> list:
    """Under autocast, all sequences in the widest of their dtypes; otherwise as they are."""
    if not torch.is_autocast_enabled(u.device.type):
        return [u, *others]
    # Parameters (two dimensions) keep their dtype.
    sequences = [t for t in (u, *others) if t is not None and t.dim() > 2]
    dtype = u.dtype
    for t in sequences:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t if t is None or t.dim() == 2 else t.to(dtype) for t in (u, *others)]


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"selective_scan: {message}")

    if u.dim() != 3:
        raise wrong(f"u must be [batch, dim, length], got {list(u.shape)}")
    batch, dim, length = u.shape
    if A.dim() != 2 or A.shape[0] != dim:
        raise wrong(f"A must be [dim, state] with dim = {dim} as in u, got {list(A.shape)}")
    state = A.shape[1]
    if length == 0 or dim == 0 or state == 0:
        raise wrong(
            f"dim, length and state must be at least 1, got u {list(u.shape)}, A {list(A.shape)}"
        )

    def expect(name: str, t: Tensor | None, shape: tuple) -> None:
        if t is not None and t.shape != shape:
            raise wrong(f"{name} must be {list(shape)} to fit u and A, got {list(t.shape)}")

    expect("delta", delta, u.shape)
    expect("z", z, u.shape)
    expect("D", D, (dim,))
    expect("delta_bias", delta_bias, (dim,))
    expect("initial_state", initial_state, (batch, dim, state))
    expect("reset", reset, (batch, length))
    columns = 2 * length if A.is_complex() else length
    for name, M in (("B", B), ("C", C)):
        if M.dim() == 4:
            groups = M.shape[1]
            if groups == 0 or dim % groups:
                raise wrong(f"{name} has {groups} groups, which do not divide dim = {dim}")
            expect(name, M, (batch, groups, state, columns))
        elif M.dim() == 3:
            expect(name, M, (batch, state, columns))
        elif M.dim() == 2:
            expect(name, M, (dim, state))
        else:
            raise wrong(
                f"{name} must be [dim, state], [batch, state, length] or [batch, groups, state, "
                f"length], got {list(M.shape)}"
            )
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1]:
        raise wrong(f"B has {B.shape[1]} groups and C has {C.shape[1]}; both must have the same")

    if u.dtype not in _FLOATS:
        raise wrong(f"u must be float32, bfloat16, float16 or float64, got {u.dtype}")
    sequences = {"delta": delta, "z": z, "B": B, "C": C}
    for name, t in sequences.items():
        if t is not None and t.dim() > 2 and t.dtype != u.dtype:
            raise wrong(f"{name} is {t.dtype} and u is {u.dtype}; cast them to one dtype")
    state_dtype = _state_dtype(u, A)
    complex_allowed = {"A": A, "B": B, "C": C, "initial_state": initial_state}
    for name, t in {**complex_allowed, "D": D, "delta_bias": delta_bias}.items():
        if t is None or (name in "BC" and t.dim() > 2):
            continue
        wanted = state_dtype if name in complex_allowed else state_dtype.to_real()
        if t.dtype not in (wanted, u.dtype):
            raise wrong(f"{name} must be {wanted} (or {u.dtype}, as u), got {t.dtype}")
    if reset is not None and reset.dtype != torch.bool:
        raise wrong(f"reset must be bool, got {reset.dtype}")
    for name, t in {**sequences, **complex_allowed, "D": D, "delta_bias": delta_bias,
                    "reset": reset}.items():  # fmt: skip
        if t is not None and t.device != u.device:
            raise wrong(f"{name} is on {t.device} and u on {u.device}; move them to one device")
