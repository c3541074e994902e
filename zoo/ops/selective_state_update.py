"""One step of the selective scan, for decoding: the state is updated in place."""

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
from zoo.ops._library import register
from zoo.ops.selective_scan import is_negative


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    eig_range: str = "01",
) -> Tensor:
    r"""One step of :func:`zoo.ops.selective_scan`, or of Mamba-2's scan; ``state`` is overwritten.

    .. math::
        h \leftarrow e^{\Delta A} h + \Delta B x, \qquad
        out = (C^\top h + D x) \cdot \mathrm{silu}(z)

    Shapes, for Mamba-1 and, with heads of P channels each, for Mamba-2:

    ============= ============= =====================
    state         [B, D, N]     [B, H, P, N]
    x, dt, z      [B, D]        [B, H, P]
    A             [D, N]        [H, P, N]
    B, C          [B, N]        [B, G, N]
    D, dt_bias    [D]           [H, P]
    returns       [B, D]        [B, H, P]
    ============= ============= =====================

    B and C may have groups ([B, G, N]) in the first form too; channel d (head h) then uses group
    d // (D / G). What Mamba-2 shares within a head is passed with ``expand``, which copies nothing.
    All of float32, bfloat16, float16 in any mixture (float64 with float64 alone); the arithmetic is
    float32. ``eig_range`` is that of :func:`zoo.ops.selective_scan`. Where gradients are recorded,
    the PyTorch reference answers, which is differentiable.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check(state, x, dt, A, B, C, D, z, dt_bias)
    negative = is_negative("selective_state_update", eig_range)
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return selective_state_update_reference(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, eig_range=eig_range
        )
    signals = [t for t in (x, dt, B, C, z) if t is not None]
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in signals))
    if state.dtype not in (dtype, torch.float32):
        dtype = torch.promote_types(dtype, torch.float32)
    compute = torch.promote_types(dtype, torch.float32)
    out = torch.ops.zoo.selective_state_update(
        state,
        x.to(dtype),
        dt.to(dtype),
        A.to(compute),
        B.to(dtype),
        C.to(dtype),
        None if D is None else D.to(compute),
        None if z is None else z.to(dtype),
        None if dt_bias is None else dt_bias.to(compute),
        dt_softplus,
        negative,
    )
    return out.to(x.dtype)


def selective_state_update_reference(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    eig_range: str = "01",
) -> Tensor:
    """:func:`selective_state_update` in PyTorch, to be read and to be compared with."""
    _check(state, x, dt, A, B, C, D, z, dt_bias)
    negative = is_negative("selective_state_update", eig_range)
    with without_autocast(x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x_in, heads = x, state.shape[1]
        x, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
        if dt_bias is not None:
            dt = dt + dt_bias.to(dtype)
        if dt_softplus:
            dt = F.softplus(dt)
        B, C = (_per_head(M, heads, state.dim()) for M in (B, C))  # [B, D or H, (1,) N]
        before = state.to(dtype, copy=True)  # what gradients need must not be overwritten
        a = torch.exp(dt[..., None] * A)
        h = (2 * a - 1 if negative else a) * before + (dt * x)[..., None] * B
        y = (h * C).sum(-1)
        if D is not None:
            y = y + x * D.to(dtype)
        if z is not None:
            y = y * F.silu(z.to(dtype))
    state.copy_(h)
    return y.to(x_in.dtype)


def _per_head(M: Tensor, heads: int, state_dims: int) -> Tensor:
    M = M if M.dim() == 3 else M[:, None]
    M = M.repeat_interleave(heads // M.shape[1], dim=1)
    return M if state_dims == 3 else M[:, :, None]


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    def wrong(message: str) -> ZooError:
        return ZooError(f"selective_state_update: {message}")

    if state.dim() not in (3, 4):
        raise wrong(
            "state must be [batch, dim, state] or [batch, heads, head_dim, state], got "
            f"{list(state.shape)}"
        )
    batch, heads, n = state.shape[0], state.shape[1], state.shape[-1]
    if 0 in state.shape[1:]:
        raise wrong(f"only the batch may be 0, got a state of {list(state.shape)}")

    def expect(name: str, t: Tensor | None, shape: tuple) -> None:
        if t is not None and t.shape != shape:
            raise wrong(f"{name} must be {list(shape)} to fit the state, got {list(t.shape)}")

    for name, t in (("x", x), ("dt", dt), ("z", z)):
        expect(name, t, state.shape[:-1])
    expect("A", A, state.shape[1:])
    expect("D", D, state.shape[1:-1])
    expect("dt_bias", dt_bias, state.shape[1:-1])
    for name, M in (("B", B), ("C", C)):
        if M.dim() == 3:
            groups = M.shape[1]
            if groups == 0 or heads % groups:
                raise wrong(f"{name} has {groups} groups, which do not divide {heads}")
            expect(name, M, (batch, groups, n))
        else:
            expect(name, M, (batch, n))
    if B.dim() == C.dim() == 3 and B.shape[1] != C.shape[1]:
        raise wrong(f"B has {B.shape[1]} groups and C has {C.shape[1]}; both must have the same")
    tensors = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z,
               "dt_bias": dt_bias}  # fmt: skip
    for name, t in tensors.items():
        if t is None:
            continue
        if t.dtype not in FLOATS or (t.dtype == torch.float64) != (x.dtype == torch.float64):
            raise wrong(
                f"{name} is {t.dtype} and x is {x.dtype}; all must be of float32, bfloat16 and "
                "float16, or all of float64"
            )
        if t.device != x.device:
            raise wrong(f"{name} is on {t.device} and x on {x.device}; move them to one device")


def _reference(*given: Any) -> Tensor:
    return selective_state_update_reference(*given[:-1], eig_range="pm1" if given[-1] else "01")


def _check_registered(*given: Any) -> None:
    _check(*given[:-2])
    _registered.selective_state_update(*given)


register(
    "selective_state_update",
    check=_check_registered,
    reference=_reference,
    fake=lambda state, x, *rest: x.new_empty(x.shape),
)
