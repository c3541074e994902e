"""The selective scan of Mamba: a linear recurrence whose coefficients vary with time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.devices import without_autocast
from zoo.errors import ZooError, check_choice
from zoo.ops import _registered
from zoo.ops._checks import FLOATS
from zoo.ops._library import recording, register


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
    eig_range: str = "01",
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
        eig_range: "01", or "pm1": the factor of the state is :math:`2 e^{\Delta A} - 1` then, from
            (-1, 1), with which a state can track states (arXiv 2411.12537).

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
    negative = is_negative("selective_scan", eig_range)
    if A.is_complex():
        return selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state,
            initial_state=initial_state, reset=reset, reverse=reverse, eig_range=eig_range,
        )  # fmt: skip
    compute = _state_dtype(u, A)
    B, C = _variable_as_4d(B, C)
    A = A.to(compute).contiguous()
    D, delta_bias, initial_state = (
        None if t is None else t.to(compute).contiguous() for t in (D, delta_bias, initial_state)
    )
    B, C = (M.to(compute).contiguous() if M.dim() == 2 else M for M in (B, C))
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, last_state, _ = torch.ops.zoo.selective_scan(
        *tensors,
        None if reset is None else reset.contiguous(),
        delta_softplus,
        reverse,
        negative,
        _chunk(u, A) if needs_grad else 0,
    )
    return (out, last_state) if return_last_state else out


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
    eig_range: str = "01",
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`selective_scan` one step after the other, to be read and to be compared with."""
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, reset)
    negative = is_negative("selective_scan", eig_range)
    with without_autocast(u):
        dtype, state_dtype = u.dtype, _state_dtype(u, A)
        length = u.shape[2]
        u, delta = u.to(state_dtype.to_real()), delta.to(state_dtype.to_real())
        if delta_bias is not None:
            delta = delta + delta_bias.to(delta.dtype)[:, None]
        if delta_softplus:
            delta = F.softplus(delta)
        A = A.to(state_dtype)
        Bs, Cs = (_steps(M, A, length) for M in (B, C))  # L times [B or 1, D, N]
        du = delta * u  # [B, D, L]
        h = A.new_zeros(u.shape[0], *A.shape)  # [B, D, N]
        if initial_state is not None:
            h = initial_state.to(state_dtype)
        ys = [u[..., 0]] * length
        for t in reversed(range(length)) if reverse else range(length):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None, None], 0)
            a = torch.exp(delta[:, :, t, None] * A)
            h = (2 * a - 1 if negative else a) * h + du[:, :, t, None] * Bs[t]
            y = (h * Cs[t]).sum(-1)  # [B, D]
            ys[t] = 2 * y.real if y.is_complex() else y
        y = torch.stack(ys, dim=2)  # [B, D, L]
        if D is not None:
            y = y + u * D.to(y.dtype)[:, None]
        if z is not None:
            y = y * F.silu(z.to(y.dtype))
    return (y.to(dtype), h) if return_last_state else y.to(dtype)


def is_negative(op: str, eig_range: str) -> bool:
    """Whether the eigenvalues of the steps may be negative."""
    check_choice(f"{op}: eig_range", eig_range, ("01", "pm1"))
    return eig_range == "pm1"


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


def _variable_as_4d(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, L] as [B, G, N, L], where G is that of the other; [D, N] as it is."""
    B, C = (M[:, None] if M.dim() == 3 else M for M in (B, C))
    if B.dim() == C.dim() == 4:
        groups = max(B.shape[1], C.shape[1])
        B, C = (M.expand(-1, groups, -1, -1) for M in (B, C))
    return B, C


def _autocast(u: Tensor, *others: Tensor | None) -> list:
    """Under autocast, all sequences in the widest of their dtypes; otherwise as they are."""
    if u.is_meta or not torch.is_autocast_enabled(u.device.type):
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

    if u.dtype not in FLOATS:
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
        wanted = state_dtype
        if name not in complex_allowed and state_dtype.is_complex:
            wanted = state_dtype.to_real()  # torch.compile cannot trace it, nor complex A
        if t.dtype not in (wanted, u.dtype):
            raise wrong(f"{name} must be {wanted} (or {u.dtype}, as u), got {t.dtype}")
    if reset is not None and reset.dtype != torch.bool:
        raise wrong(f"reset must be bool, got {reset.dtype}")
    for name, t in {**sequences, **complex_allowed, "D": D, "delta_bias": delta_bias,
                    "reset": reset}.items():  # fmt: skip
        if t is not None and t.device != u.device:
            raise wrong(f"{name} is on {t.device} and u on {u.device}; move them to one device")


def _chunk(u: Tensor, A: Tensor) -> int:
    """How many steps apart the states are that the forward pass leaves for the backward pass.

    The longer, the less memory and the more recomputed states at a time.
    """
    if u.device.type == "cuda":
        return 64  # kScanChunk
    return 128 if A.shape[1] <= 64 else 256


def _reference(
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
    delta_softplus: bool,
    reverse: bool,
    negative: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out, last_state = selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, True,
        initial_state=initial_state, reset=reset, reverse=reverse,
        eig_range="pm1" if negative else "01",
    )  # fmt: skip
    return torch.empty_like(u).copy_(out), last_state, _borders(u, A, chunk).zero_()


def _reference_backward(
    dout: Tensor | None,
    dlast_state: Tensor | None,
    borders: Tensor,
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
    *settings: bool | int,
) -> tuple[Tensor, ...]:
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    grads = _gradients(*given)
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in given]
        out, last_state, _ = _reference(*leaves, reset, *settings)  # type: ignore[call-arg, arg-type]
        doutputs = [
            torch.zeros_like(o) if d is None else d
            for o, d in ((out, dout), (last_state, dlast_state))
        ]
        wanted = [t for t in leaves if t is not None]
        found = iter(
            torch.autograd.grad((out, last_state), wanted, doutputs, materialize_grads=True)
        )
    for grad, t in zip(grads, leaves, strict=True):
        if t is not None:
            grad.copy_(next(found))
    return grads


def _borders(u: Tensor, A: Tensor, chunk: int) -> Tensor:
    batch, dim, length = u.shape
    shape = (batch, -(-length // chunk), dim, A.shape[1]) if chunk else (0,)
    return A.new_empty(shape)


def _gradients(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, ...]:
    """Memory for all gradients; without elements for what is absent."""

    def contiguous(t: Tensor | None) -> Tensor:
        return A.new_empty(0) if t is None else t.new_empty(t.shape)

    return (
        torch.empty_like(u), torch.empty_like(delta), contiguous(A), contiguous(B), contiguous(C),
        contiguous(D), u.new_empty(0) if z is None else torch.empty_like(z),
        contiguous(delta_bias), contiguous(initial_state),
    )  # fmt: skip


def _fake(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(u), A.new_empty(u.shape[0], *A.shape), _borders(u, A, rest[-1])


register("selective_scan", check=_registered.selective_scan, reference=_reference, fake=_fake)
register(
    "selective_scan_backward",
    check=_registered.selective_scan_backward,
    reference=recording(_reference_backward),
    fake=lambda dout, dlast_state, borders, *rest: _gradients(*rest[:9]),
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    borders = output[2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(borders)
    ctx.save_for_backward(borders, *inputs[:10])
    ctx.settings = inputs[10:]


def _backward(
    ctx: Any, dout: Tensor | None, dlast_state: Tensor | None, dborders: None
) -> tuple[Tensor | None, ...]:
    if dout is None and dlast_state is None:
        return (None,) * 14
    if dlast_state is not None:
        dlast_state = dlast_state.contiguous()
    grads = torch.ops.zoo.selective_scan_backward(
        dout, dlast_state, *ctx.saved_tensors, *ctx.settings
    )
    wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "selective_scan has no second derivative; selective_scan_reference, which is slower, has"
    )


torch.library.register_autograd("zoo::selective_scan", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::selective_scan_backward", _no_second_derivative)
