"""The Vandermonde kernel: sums of complex exponentials, without a matrix of modes by steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import COMPLEX, as_complex, as_pairs
from zoo.ops._library import register


def vandermonde_kernel(v: Tensor, x: Tensor, length: int) -> Tensor:
    r"""Sums over conjugate pairs of modes (S4D, arXiv 2206.11893, section 3.3).

    .. math::
        out_{rhl} = 2\,\mathrm{Re} \sum_n v_{rhn}\, e^{x_{hn} l}, \qquad l = 0, \dots, L - 1

    No intermediate is larger than inputs and outputs. Phases are kept in float64, so that in
    complex64, too, the error does not grow with the length.

    Args:
        v: coefficients, ``[..., H, N]``; the leading dimensions share the modes.
        x: logarithms of the modes, ``[H, N]``.
        length: L.

    Both are complex64, or both complex128.

    Returns:
        ``[..., H, L]``, contiguous, real; differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or L is negative.
    """
    _check("vandermonde_kernel", v, x, length)
    rows = v.reshape(math.prod(v.shape[:-2]), *x.shape)
    out = torch.ops.zoo.vandermonde_kernel(as_pairs(rows), as_pairs(x), length)
    return out.reshape(*v.shape[:-1], length)


def vandermonde_transpose(u: Tensor, x: Tensor) -> Tensor:
    r"""Sums over time, the transpose of :func:`vandermonde_kernel`.

    .. math::
        out_{rhn} = \sum_l u_{rhl}\, e^{x_{hn} l}

    Args:
        u: real, ``[..., H, L]``.
        x: logarithms of the modes, ``[H, N]``, complex64 if u is float32, complex128 if float64.

    Returns:
        ``[..., H, N]``, contiguous, complex; differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check_transpose(u, x)
    rows = u.reshape(math.prod(u.shape[:-2]), *u.shape[-2:]).contiguous()
    out = torch.ops.zoo.vandermonde_transpose(rows, as_pairs(x), 1)
    return as_complex(out).reshape(*u.shape[:-1], x.shape[1])


def vandermonde_kernel_reference(v: Tensor, x: Tensor, length: int) -> Tensor:
    """:func:`vandermonde_kernel` in plain PyTorch, to be read and to be compared with."""
    _check("vandermonde_kernel", v, x, length)
    return 2 * torch.einsum("...hn,hnl->...hl", v, _powers(x, length)).real


def vandermonde_transpose_reference(u: Tensor, x: Tensor) -> Tensor:
    """:func:`vandermonde_transpose` in plain PyTorch, to be read and to be compared with."""
    _check_transpose(u, x)
    return torch.einsum("...hl,hnl->...hn", u.to(x.dtype), _powers(x, u.shape[-1]))


def _powers(x: Tensor, length: int) -> Tensor:
    return torch.exp(x[..., None] * torch.arange(length, device=x.device))  # [H, N, L]


def _check(op: str, v: Tensor, x: Tensor, length: int) -> None:
    if x.dim() != 2 or v.dim() < 2 or v.shape[-2:] != x.shape or 0 in x.shape:
        raise ZooError(
            f"{op} takes v [..., H, N] and x [H, N] with H and N of at least 1, got "
            f"{list(v.shape)} and {list(x.shape)}"
        )
    if v.dtype != x.dtype or x.dtype not in COMPLEX or v.device != x.device:
        raise ZooError(
            f"{op}: v and x must both be complex64 or both complex128, on one device, got "
            f"{v.dtype} and {x.dtype} on {v.device} and {x.device}"
        )
    if length < 0:
        raise ZooError(f"{op}: length is at least 0, got {length}")


def _check_transpose(u: Tensor, x: Tensor) -> None:
    op = "vandermonde_transpose"
    if x.dim() != 2 or u.dim() < 2 or u.shape[-2] != x.shape[0] or 0 in x.shape:
        raise ZooError(
            f"{op} takes u [..., H, L] and x [H, N] with H and N of at least 1, got "
            f"{list(u.shape)} and {list(x.shape)}"
        )
    if COMPLEX.get(x.dtype) != u.dtype or u.device != x.device:
        raise ZooError(
            f"{op}: u must be float32 with x complex64, or float64 with complex128, on one device, "
            f"got {u.dtype} and {x.dtype} on {u.device} and {x.device}"
        )


def _reference(v: Tensor, x: Tensor, length: int) -> Tensor:
    return vandermonde_kernel_reference(torch.view_as_complex(v), torch.view_as_complex(x), length)


def _reference_transpose(u: Tensor, x: Tensor, moments: int) -> Tensor:
    x, times = torch.view_as_complex(x), torch.arange(u.shape[-1], device=u.device, dtype=u.dtype)
    out = [vandermonde_transpose_reference(u * times**m, x) for m in range(moments)]
    return torch.view_as_real(torch.stack(out)).clone()


register(
    "vandermonde_kernel",
    check=_registered.vandermonde_kernel,
    reference=_reference,
    fake=lambda v, x, length: v.new_empty(*v.shape[:2], length),
)
register(
    "vandermonde_transpose",
    check=_registered.vandermonde_transpose,
    reference=_reference_transpose,
    fake=lambda u, x, moments: u.new_empty(moments, u.shape[0], *x.shape),
)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    v, x, _ = inputs
    ctx.save_for_backward(v, x)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    v, x = ctx.saved_tensors
    moments = 2 if ctx.needs_input_grad[1] else 1
    sums = torch.ops.zoo.vandermonde_transpose(dout.contiguous(), x, moments)
    sums = torch.view_as_complex(sums)
    dx = None
    if moments == 2:
        dx = torch.view_as_real(2 * (torch.view_as_complex(v) * sums[1]).sum(0).conj())
    return torch.view_as_real(2 * sums[0].conj().resolve_conj()), dx, None


def _keep_transpose(ctx: Any, inputs: tuple, output: Tensor) -> None:
    u, x, moments = inputs
    ctx.save_for_backward(u, x)
    ctx.moments = moments


def _backward_transpose(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.moments != 1:
        _no_second_derivative(ctx)
    u, x = ctx.saved_tensors
    g = torch.view_as_complex(dout[0].contiguous())  # [R, H, N]
    half = torch.view_as_real((g / 2).conj().resolve_conj())
    du = torch.ops.zoo.vandermonde_kernel(half, x, u.shape[-1])
    dx = None
    if ctx.needs_input_grad[1]:
        sums = torch.view_as_complex(torch.ops.zoo.vandermonde_transpose(u, x, 2))
        dx = torch.view_as_real((g * sums[1].conj()).sum(0))
    return du, dx, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "vandermonde_kernel has no second derivative; vandermonde_kernel_reference, which is "
        "slower, has"
    )


torch.library.register_autograd("zoo::vandermonde_kernel", _backward, setup_context=_keep)
torch.library.register_autograd(
    "zoo::vandermonde_transpose", _backward_transpose, setup_context=_keep_transpose
)
