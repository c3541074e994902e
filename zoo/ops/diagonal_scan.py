"""Linear recurrence with a diagonal matrix that may change from step to step."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import check_one_device
from zoo.ops._library import register

_DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128
)  # fmt: skip


@overload
def diagonal_scan(
    a: Tensor, b: Tensor, *, initial_state: Tensor | None = ..., reset: Tensor | None = ...,
    reverse: bool = ..., return_last_state: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def diagonal_scan(
    a: Tensor, b: Tensor, *, initial_state: Tensor | None = ..., reset: Tensor | None = ...,
    reverse: bool = ..., return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def diagonal_scan(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The scan of S5 (arXiv 2208.04933), with the resets of S5-RL (arXiv 2303.03982):

    .. math::
        x_t = a_t (1 - reset_t) x_{t-1} + b_t

    Args:
        a: factors [N] (the same at all steps), [L, N] or [B, L, N].
        b: inputs [B, L, N].
        initial_state: state before the first step [B, N]; zero if absent.
        reset: bool [B, L]; where True, no state passes into this step (packed sequences, episodes).
        reverse: run from step L-1 to step 0; the initial state then comes before step L-1, and the
            last state is the one after step 0.
        return_last_state: also return the state after the last step.

    Any mixture of float32, float64, complex64 and complex128, bfloat16 and float16; the scan has
    the dtype that all of them promote to, at least float32, also under autocast.

    Returns:
        All states [B, L, N]; with ``return_last_state`` also the last one [B, N]. Differentiable,
        once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or L or N is 0.
    """
    _check(a, b, initial_state, reset)
    dtype = _result_dtype(a, b, initial_state)
    a, b = (_pairs(t, dtype) for t in (a, b))
    x = torch.ops.zoo.diagonal_scan(
        a.reshape(*(1,) * (3 - a.dim()), *a.shape),
        b,
        None if initial_state is None else _pairs(initial_state, dtype).contiguous(),
        None if reset is None else reset.contiguous(),
        dtype.is_complex,
        reverse,
    )
    if dtype.is_complex:
        x = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return (x, x[:, 0 if reverse else -1]) if return_last_state else x


def diagonal_scan_reference(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`diagonal_scan` one step after the other, to be read and to be compared with."""
    _check(a, b, initial_state, reset)
    dtype = _result_dtype(a, b, initial_state)
    a, b = a.to(dtype).expand(b.shape), b.to(dtype)
    x = torch.zeros_like(b[:, 0]) if initial_state is None else initial_state.to(dtype)
    xs = [x] * b.shape[1]
    for t in reversed(range(len(xs))) if reverse else range(len(xs)):
        if reset is not None:
            x = x.masked_fill(reset[:, t, None], 0)
        x = a[:, t] * x + b[:, t]
        xs[t] = x
    states = torch.stack(xs, dim=1)
    return (states, x) if return_last_state else states


def _result_dtype(*tensors: Tensor | None) -> torch.dtype:
    dtype = torch.float32
    for t in tensors:
        dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


def _pairs(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In this dtype, complex numbers as pairs in the last dimension, which has stride 1."""
    t = t.to(dtype)
    if dtype.is_complex:
        t = torch.view_as_real(t.resolve_conj()).flatten(-2)
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _check(a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"diagonal_scan: {message}")

    if b.dim() != 3 or 0 in b.shape[1:]:
        raise wrong(
            f"b must be [batch, length, channels], length and channels at least 1, got "
            f"{list(b.shape)}"
        )
    batch, _, channels = b.shape
    if a.dim() not in (1, 2, 3) or a.shape != b.shape[3 - a.dim() :]:
        raise wrong(
            f"a must be [channels], [length, channels] or [batch, length, channels] of b "
            f"{list(b.shape)}, got {list(a.shape)}"
        )
    for name, t, shape in (
        ("initial_state", initial_state, (batch, channels)),
        ("reset", reset, b.shape[:2]),
    ):
        if t is not None and t.shape != shape:
            raise wrong(f"{name} must be {list(shape)} to fit b, got {list(t.shape)}")
    for name, t in (("a", a), ("b", b), ("initial_state", initial_state), ("reset", reset)):
        if t is None:
            continue
        if name != "reset" and t.dtype not in _DTYPES:
            raise wrong(f"{name} must be of a floating or complex dtype, got {t.dtype}")
        if name == "reset" and t.dtype != torch.bool:
            raise wrong(f"reset must be bool, got {t.dtype}")
    check_one_device("diagonal_scan", b=b, a=a, initial_state=initial_state, reset=reset)


def _complex(t: Tensor | None, is_complex: bool) -> Tensor | None:
    if t is None or not is_complex:
        return t
    return torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())


def _real(t: Tensor) -> Tensor:
    """A result of its own memory, complex numbers as pairs."""
    t = torch.view_as_real(t.resolve_conj()).flatten(-2) if t.is_complex() else t
    return t.contiguous()


def _reference(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    is_complex: bool,
    reverse: bool,
) -> Tensor:
    a, b, initial_state = (_complex(t, is_complex) for t in (a, b, initial_state))  # type: ignore[assignment]
    states = diagonal_scan_reference(
        a.expand(b.shape), b, initial_state=initial_state, reset=reset, reverse=reverse
    )
    return _real(states)  # type: ignore[arg-type]


def _reference_backward(
    dx: Tensor,
    x: Tensor,
    a: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    is_complex: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the states alone: the scan's adjoint is a scan in the other direction."""
    steps = range(x.shape[1]) if reverse else reversed(range(x.shape[1]))
    dx, x, a, initial = (_complex(t, is_complex) for t in (dx, x, a, initial_state))  # type: ignore[assignment]
    a = a.expand(x.shape[0], -1, -1)
    first = torch.zeros_like(x[:, 0]) if initial is None else initial
    grad = torch.zeros_like(first)
    da, db = torch.zeros_like(a), torch.empty_like(x)
    for t in steps:
        before = t + 1 if reverse else t - 1
        previous = x[:, before] if 0 <= before < x.shape[1] else first
        db[:, t] = grad + dx[:, t]
        at = t if a.shape[1] > 1 else 0
        factor, seen = a[:, at].conj(), previous.conj()
        if reset is not None:
            factor, seen = (m.masked_fill(reset[:, t, None], 0) for m in (factor, seen))
        da[:, at] += db[:, t] * seen
        grad = db[:, t] * factor
    dinitial = x.real.new_empty(0) if initial is None else _real(grad)
    return _real(da), _real(db), dinitial


def _fake_backward(
    dx: Tensor, x: Tensor, a: Tensor, initial_state: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, width = x.shape
    dinitial = x.new_empty(0) if initial_state is None else x.new_empty(batch, width)
    return x.new_empty(batch, a.shape[1], width), x.new_empty(x.shape), dinitial


register(
    "diagonal_scan",
    check=_registered.diagonal_scan,
    reference=_reference,
    fake=lambda a, b, *rest: b.new_empty(b.shape),
)
register(
    "diagonal_scan_backward",
    check=_registered.diagonal_scan_backward,
    reference=_reference_backward,
    fake=_fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    a, _, initial_state, reset, *settings = inputs
    ctx.save_for_backward(output, a, initial_state, reset)
    ctx.settings = settings


def _backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    x, a, initial_state, reset = ctx.saved_tensors
    da, db, dinitial = torch.ops.zoo.diagonal_scan_backward(
        dx.contiguous(), x, a, initial_state, reset, *ctx.settings
    )
    if a.shape[0] == 1:
        da = da.sum(0, keepdim=True)
    return da, db, None if initial_state is None else dinitial, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "diagonal_scan has no second derivative; diagonal_scan_reference, which is slower, has"
    )


torch.library.register_autograd("zoo::diagonal_scan", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::diagonal_scan_backward", _no_second_derivative)
