"""The Cauchy kernel: sums of conjugate pairs of poles, without a matrix of poles by points."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import COMPLEX, as_complex, as_pairs
from zoo.ops._library import register

_NO_GRADIENT = "cauchy_kernel: z gets no gradient; pass z.detach()"


def cauchy_kernel(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    r"""Sums over conjugate pairs of poles (S4, arXiv 2111.00396, section 3.3).

    .. math::
        out_{rhl} = \sum_n \frac{v_{rhn}}{z_l - w_{hn}} +
            \frac{\overline{v_{rhn}}}{z_l - \overline{w_{hn}}}

    No intermediate is larger than inputs and outputs.

    Args:
        v: numerators, ``[..., H, N]``; the leading dimensions share the poles.
        z: points, ``[L]``; they get no gradient.
        w: poles, ``[H, N]``, one of each pair.

    All are complex64, or all complex128. In complex64, absolute values of z and w below 1e9 and
    distances above 1e-9 stay in range.

    Returns:
        ``[..., H, L]``, contiguous, complex; differentiable in v and w, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or z requires a gradient.
    """
    _check(v, z, w)
    rows = v.reshape(math.prod(v.shape[:-2]), *w.shape)
    out = torch.ops.zoo.cauchy_kernel(as_pairs(rows), as_pairs(z), as_pairs(w))
    return as_complex(out).reshape(*v.shape[:-1], z.shape[0])


def cauchy_kernel_reference(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """:func:`cauchy_kernel` in plain PyTorch, to be read and to be compared with."""
    _check(v, z, w)
    terms = v[..., None] / (z - w[..., None])  # [..., H, N, L]
    conjugates = v.conj()[..., None] / (z - w.conj()[..., None])
    return (terms + conjugates).sum(-2)


def _check(v: Tensor, z: Tensor, w: Tensor) -> None:
    if w.dim() != 2 or v.dim() < 2 or v.shape[-2:] != w.shape or z.dim() != 1 or 0 in w.shape:
        raise ZooError(
            "cauchy_kernel takes v [..., H, N], z [L] and w [H, N] with H and N of at least 1, got "
            f"{list(v.shape)}, {list(z.shape)} and {list(w.shape)}"
        )
    dtypes, devices = {t.dtype for t in (v, z, w)}, {t.device for t in (v, z, w)}
    if len(dtypes) > 1 or not dtypes <= set(COMPLEX) or len(devices) > 1:
        raise ZooError(
            "cauchy_kernel: v, z and w must all be complex64 or all complex128, on one device, got "
            f"{v.dtype}, {z.dtype} and {w.dtype} on {v.device}, {z.device} and {w.device}"
        )
    if z.requires_grad and torch.is_grad_enabled():
        raise ZooError(_NO_GRADIENT)


def _reference(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    v, z, w = (torch.view_as_complex(t) for t in (v, z, w))
    return torch.view_as_real(cauchy_kernel_reference(v, z, w)).clone()


def _reference_backward(dout: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    dout, v, z, w = (torch.view_as_complex(t) for t in (dout, v, z, w))
    a, b = 1 / (z - w[..., None]), 1 / (z - w.conj()[..., None])  # [H, N, L]
    g = dout[:, :, None]  # [R, H, 1, L]
    dv = (g * a.conj() + g.conj() * b).sum(-1)
    dw = (v.conj() * (g * a.conj().square() + g.conj() * b.square()).sum(-1)).sum(0)
    return torch.view_as_real(dv).clone(), torch.view_as_real(dw).clone()


register(
    "cauchy_kernel",
    check=_registered.cauchy_kernel,
    reference=_reference,
    fake=lambda v, z, w: v.new_empty(*v.shape[:2], z.shape[0], 2),
)
register(
    "cauchy_kernel_backward",
    check=_registered.cauchy_kernel_backward,
    reference=_reference_backward,
    fake=lambda dout, v, z, w: (torch.empty_like(v), torch.empty_like(w)),
)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    if ctx.needs_input_grad[1]:
        raise ZooError(_NO_GRADIENT)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dv, dw = torch.ops.zoo.cauchy_kernel_backward(dout.contiguous(), *ctx.saved_tensors)
    return dv, None, dw


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "cauchy_kernel has no second derivative; cauchy_kernel_reference, which is slower, has"
    )


torch.library.register_autograd("zoo::cauchy_kernel", _backward, setup_context=_keep)
torch.library.register_autograd("zoo::cauchy_kernel_backward", _no_second_derivative)
