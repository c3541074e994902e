"""Convolution with the kernel of a diagonal state space model, in parts joined by its state."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops._checks import COMPLEX, FLOATS, check_one_device
from zoo.ops.fft_conv import fft_conv
from zoo.ops.vandermonde_kernel import vandermonde_kernel, vandermonde_transpose


def state_passing_conv(
    u: Tensor,
    log_A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    chunk: int = 4096,
) -> tuple[Tensor, Tensor]:
    r"""FlashConv's state passing (arXiv 2212.14052, algorithm 2): exact for any length.

    The recurrence of a diagonal state space model, one of each conjugate pair of modes,

    .. math::
        x_t = A x_{t-1} + B u_t, \qquad y_t = 2 \Re(C x_t) + D u_t,

    is a convolution inside each part of ``chunk`` steps; what came before enters through the state
    alone: :math:`y = M_{xy} x + k * u + D u` and :math:`x' = A^n x + M_{ux} u`. Transforms and
    kernel have the size of a part, whatever the length, and no powers of all modes are kept
    (:func:`vandermonde_kernel`).

    Args:
        u: input [batch, H, L], float32, bfloat16 or float16; float64 with complex128.
        log_A: logarithms of the discrete modes [H, N], complex64 or complex128.
        B: input weights [H, N], complex.
        C: output weights [H, N], complex.
        D: skip weight [H].
        initial_state: [batch, H, N] complex; zero if absent.
        chunk: steps of a part.

    Returns:
        y [batch, H, L] in the dtype of u, and the state after the last step [batch, H, N].

    Raises:
        ZooError: if shapes, dtypes or devices do not fit or chunk is not positive.
    """
    batch, length = _check(u, log_A, B, C, D, initial_state, chunk)
    state = log_A.new_zeros(batch, *log_A.shape) if initial_state is None else initial_state
    after_one = C * torch.exp(log_A)  # what the state says a step later
    k = vandermonde_kernel(B * C, log_A, min(chunk, length))
    outputs = []
    for part in u.split(chunk, dim=-1):
        n = part.shape[-1]
        y = fft_conv(part, k[:, :n], D).to(k.dtype)
        y = y + vandermonde_kernel(state * after_one, log_A, n)
        outputs.append(y.to(u.dtype))
        inputs = vandermonde_transpose(part.to(k.dtype).flip(-1), log_A)  # [batch, H, N]
        state = torch.exp(log_A * n) * state + B * inputs
    return torch.cat(outputs, dim=-1), state


def state_passing_conv_reference(
    u: Tensor,
    log_A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`state_passing_conv` one step after the other, to be read and to be compared with."""
    batch, length = _check(u, log_A, B, C, D, initial_state, 1)
    x = log_A.new_zeros(batch, *log_A.shape) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        x = torch.exp(log_A) * x + B * u[..., t, None]
        y = 2 * (C * x).sum(-1).real
        ys.append(y if D is None else y + D * u[..., t])
    return torch.stack(ys, dim=-1).to(u.dtype), x


def _check(
    u: Tensor,
    log_A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    chunk: int,
) -> tuple[int, int]:
    def wrong(message: str) -> ZooError:
        return ZooError(f"state_passing_conv: {message}")

    if u.dim() != 3 or 0 in u.shape[1:]:
        raise wrong(f"u must be [batch, channels, length], got {list(u.shape)}")
    batch, channels, length = u.shape
    if log_A.dim() != 2 or log_A.shape[0] != channels or log_A.dtype not in COMPLEX:
        raise wrong(
            f"log_A must be complex [{channels}, modes], got {log_A.dtype} {list(log_A.shape)}"
        )
    for name, t in (("u", u), ("D", D)):
        if t is None:
            continue
        is_double = t.dtype == torch.float64
        if t.dtype not in FLOATS or is_double != (log_A.dtype == torch.complex128):
            raise wrong(
                f"{name} must be float32, bfloat16 or float16 with complex64, or float64 with "
                f"complex128, got {t.dtype} and log_A {log_A.dtype}"
            )
    if D is not None and D.shape != (channels,):
        raise wrong(f"D must be [{channels}], got {list(D.shape)}")
    for name, t, shape in (
        ("B", B, log_A.shape),
        ("C", C, log_A.shape),
        ("initial_state", initial_state, (batch, *log_A.shape)),
    ):
        if t is not None and (t.shape != shape or t.dtype != log_A.dtype):
            raise wrong(
                f"{name} must be {log_A.dtype} {list(shape)}, got {t.dtype} {list(t.shape)}"
            )
    check_one_device(
        "state_passing_conv", u=u, log_A=log_A, B=B, C=C, D=D, initial_state=initial_state
    )
    if not isinstance(chunk, int) or chunk < 1:
        raise wrong(f"chunk must be a whole number from 1 on, got {chunk}")
    return batch, length
