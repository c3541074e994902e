"""States that are matrices: the delta rule, with or without decay, and linear attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.ops import _registered
from zoo.ops._checks import FLOATS, check_one_device
from zoo.ops._delta_chunked import delta_chunked
from zoo.ops._library import recording, register

#: Steps between the states that the forward pass leaves for the backward pass: kDeltaSpan.
SPAN = 32


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A fast-weight memory that corrects what it holds (DeltaNet, arXiv 2406.06484; with decay:
    Gated DeltaNet, arXiv 2412.06464).

    .. math::
        S_t = a_t (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \qquad
        o_t = c\,S_t^\top q_t

    With :math:`\|k_t\| = 1` the eigenvalue along k is :math:`a_t (1 - \beta_t)`: beta in (0, 1)
    keeps it positive, beta in (0, 2) lets the state track what only reflections can
    (arXiv 2411.12537).

    Args:
        q, k: [B, L, H, N]; nothing normalises them here.
        v: [B, L, H, P].
        beta: [B, L, H], how much of the old value at k is replaced.
        decay: [B, L, H], the factor a (not its logarithm, and it may be negative); None: 1.
        scale: c, N^-0.5 by default.
        initial_state: [B, H, N, P], zeros by default.
        return_final_state: also return the state after the last step, [B, H, N, P] float32.

    Returns:
        [B, L, H, P] in the dtype of v. All arithmetic is float32 (float64 if the arguments are).
        Outputs and final states are differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    _check_delta_rule(q, k, v, beta, decay, initial_state)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    out, state = _call(q, k, v, beta, decay, scale, initial_state)
    return (out, state) if return_final_state else out


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-12,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Causal linear attention (arXiv 2006.16236); feature maps are applied outside.

    .. math::
        S_t = a_t S_{t-1} + k_t v_t^\top, \qquad o_t = c\,S_t^\top q_t \quad\text{or}\quad
        \frac{S_t^\top q_t}{z_t \cdot q_t + \epsilon}, \quad z_t = a_t z_{t-1} + k_t

    Args:
        q, k: [B, L, H, N], after the feature maps.
        v: [B, L, H, P].
        decay: [B, L, H], the factor a (not its logarithm, and it may be negative); None: 1.
        scale: c; the normalised form has none.
        normalize: the second form. Its state holds z as one column more, the last.
        eps: of the second form.
        initial_state: [B, H, N, P], or [B, H, N, P + 1] if ``normalize``; zeros by default.
        return_final_state: also return the state after the last step, of that shape, in float32.

    Returns:
        [B, L, H, P] in the dtype of v. All arithmetic is float32 (float64 if the arguments are).
        Outputs and final states are differentiable, once.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit.
    """
    if not normalize:
        _check("linear_attention", q, k, v, None, decay, initial_state)
        out, state = _call(q, k, v, None, decay, scale, initial_state)
        return (out, state) if return_final_state else out
    _check("linear_attention", q, k, v, None, decay, initial_state, _columns(v))
    counted = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1)
    sums, state = _call(q, k, counted.to(_compute(q, k, v)), None, decay, 1.0, initial_state)
    out = (sums[..., :-1] / (sums[..., -1:] + eps)).to(v.dtype)
    return (out, state) if return_final_state else out


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`delta_rule` one step after the other, to be read and to be compared with."""
    _check_delta_rule(q, k, v, beta, decay, initial_state)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    dtype, compute = v.dtype, _compute(q, k, v)
    q, k, v, beta = (t.to(compute) for t in (q * scale, k, v, beta))
    S = _start(k, v, initial_state)
    outputs = []
    for t in range(k.shape[1]):
        S = S if decay is None else decay[:, t, :, None, None].to(compute) * S
        held = torch.einsum("bhn,bhnp->bhp", k[:, t], S)
        change = beta[:, t, :, None] * (v[:, t] - held)
        S = S + torch.einsum("bhn,bhp->bhnp", k[:, t], change)
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], S))
    out = torch.stack(outputs, dim=1).to(dtype)
    return (out, S) if return_final_state else out


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-12,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`linear_attention` one step after the other, to be read and to be compared with."""
    columns = _columns(v) if normalize else None
    _check("linear_attention", q, k, v, None, decay, initial_state, columns)
    dtype, compute = v.dtype, _compute(q, k, v)
    if normalize:
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1)
    q, k, v = (t.to(compute) for t in (q, k, v))
    S = _start(k, v, initial_state)
    outputs = []
    for t in range(k.shape[1]):
        S = S if decay is None else decay[:, t, :, None, None].to(compute) * S
        S = S + torch.einsum("bhn,bhp->bhnp", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], S))
    out = torch.stack(outputs, dim=1)
    out = out[..., :-1] / (out[..., -1:] + eps) if normalize else out * scale
    return (out.to(dtype), S) if return_final_state else out.to(dtype)


def _columns(v: Tensor) -> int:
    """Of the state of a normalised form, whatever v is: it is checked with them."""
    return (v.shape[-1] if v.dim() else 0) + 1


def _start(k: Tensor, v: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state.to(k.dtype)
    return k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])


def _compute(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype, compute = v.dtype, _compute(q, k, v)
    with without_autocast(q):
        given: list[Any] = [
            None if t is None else t.to(compute).contiguous()
            for t in (q if scale == 1 else q.to(compute) * scale, k, v, beta, decay, initial_state)
        ]
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, state, _ = torch.ops.zoo.delta_rule(*given, SPAN if needs_grad else 0)
    return out.to(dtype), state


def _check_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *others: Any) -> None:
    if beta is None:
        raise ZooError("delta_rule: beta is missing; without one it is linear_attention")
    _check("delta_rule", q, k, v, beta, *others)


def _check(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial_state: Tensor | None,
    columns: int | None = None,
) -> None:
    """With ``columns`` the state has so many, and not as many as v."""
    if k.dim() != 4 or v.dim() != 4 or 0 in (*k.shape[1:], v.shape[3]):
        raise ZooError(
            f"{op} takes q, k [B, L, H, N] and v [B, L, H, P], where only B may be 0, "
            f"not k {tuple(k.shape)} and v {tuple(v.shape)}"
        )
    batch, length, heads, state = k.shape
    expected = {
        "q": (q, (batch, length, heads, state)),
        "k": (k, (batch, length, heads, state)),
        "v": (v, (batch, length, heads, v.shape[3])),
        "beta": (beta, (batch, length, heads)),
        "decay": (decay, (batch, length, heads)),
        "initial_state": (initial_state, (batch, heads, state, columns or v.shape[3])),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ZooError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype not in FLOATS:
            raise ZooError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}"
            )
    check_one_device(op, q=q, k=k, v=v, beta=beta, decay=decay, initial_state=initial_state)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial_state: Tensor | None,
    span: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out, state = delta_chunked(q, k, v, beta, decay, initial_state)
    return out.contiguous(), state.clone(), _borders(k, v, span).zero_()


def _reference_backward(
    dout: Tensor | None, dlast_state: Tensor | None, borders: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    given = arguments[:6]
    grads = _gradients(*given)
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in given]
        out, state = delta_chunked(*leaves)
        doutputs = [
            torch.zeros_like(o) if d is None else d for o, d in ((out, dout), (state, dlast_state))
        ]
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad((out, state), wanted, doutputs, materialize_grads=True))
    for grad, t in zip(grads, leaves, strict=True):
        if t is not None:
            grad.copy_(next(found))
    return grads


def _borders(k: Tensor, v: Tensor, span: int) -> Tensor:
    batch, length, heads, state = k.shape
    shape = (batch, -(-length // span), heads, state * v.shape[3]) if span else (0,)
    return k.new_empty(shape)


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, ...]:
    """Memory for all gradients; without elements for what is absent."""
    return tuple(
        k.new_empty(0 if t is None else t.shape) for t in (q, k, v, beta, decay, initial_state)
    )


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, state = k.shape
    last = k.new_empty(batch, heads, state, v.shape[3])
    return v.new_empty(v.shape), last, _borders(k, v, rest[-1])


register("delta_rule", check=_registered.delta_rule, reference=_reference, fake=_fake)
register(
    "delta_rule_backward",
    check=_registered.delta_rule_backward,
    reference=recording(_reference_backward),
    fake=lambda dout, dlast_state, borders, *rest: _gradients(*rest[:6]),
)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    borders = output[2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(borders)
    ctx.save_for_backward(borders, *inputs[:6])
    ctx.span = inputs[6]


def _backward(
    ctx: Any, dout: Tensor | None, dstate: Tensor | None, dborders: None
) -> tuple[Tensor | None, ...]:
    if dout is None and dstate is None:
        return (None,) * 7
    grads = torch.ops.zoo.delta_rule_backward(
        None if dout is None else dout.contiguous(),
        None if dstate is None else dstate.contiguous(),
        *ctx.saved_tensors,
        ctx.span,
    )
    wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "delta_rule and linear_attention have no second derivative; their references, which are "
        "slower, have"
    )


torch.library.register_autograd("zoo::delta_rule", _backward, setup_context=_keep)
torch.library.register_autograd("zoo::delta_rule_backward", _no_second_derivative)
