"""The ops in PyTorch's own terms, for programs that run where our kernels do not (ONNX).

A recurrence over time becomes one ``scan``, so that a program does not grow with its length; what
has none is taken from the op's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from zoo.errors import ZooError
from zoo.ops._library import traceable
from zoo.ops.causal_conv1d import causal_conv1d_reference
from zoo.ops.recurrent_cell import CELLS, step_of

#: Ops whose references loop over chunks or not at all.
_BY_REFERENCE = ("cross_scan", "cross_merge", "delta_rule", "ssd")


def decompositions() -> dict[Any, Callable]:
    """Op -> its form in ops that ONNX has, for ``ExportedProgram.run_decompositions``; all without
    gradients. One is PyTorch's own: a stable sort, as ONNX's topk is stable."""
    forms: dict[str, Callable] = {
        "causal_conv1d": _causal_conv1d,
        "diagonal_scan": _diagonal_scan,
        "recurrent_cell": _recurrent_cell,
        "selective_scan": _selective_scan,
        **{name: traceable[name] for name in _BY_REFERENCE},
    }
    own: dict[Any, Callable] = {
        getattr(torch.ops.zoo, name).default: form for name, form in forms.items()
    }
    return {**own, torch.ops.aten.sort.stable: _sort, torch.ops.aten.argsort.stable: _argsort}


def missing(program: torch.export.ExportedProgram) -> list[str]:
    """The ops of ours in a program that have no other form."""
    own = {
        str(node.target)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "zoo"
    }
    return sorted(own - {str(op) for op in decompositions()})


def _scan(
    step: Callable[..., tuple[Tensor, ...]],
    states: list[Tensor],
    inputs: list[Tensor],
    constants: tuple[Tensor, ...] = (),
    *,
    reverse: bool = False,
) -> list[Tensor]:
    """States [...] and inputs [L, ...] to the last states and outputs [L, ...].

    Args:
        step: (states, inputs of a step, constants) -> (new states, outputs of the step), none of
            which may be another's memory.
        reverse: begin at the last step.
    """
    inputs = [t.flip(0) if reverse else t for t in inputs]
    last = scan_op(step, states, inputs, constants)
    count = len(states)
    return [*last[:count], *(t.flip(0) if reverse else t for t in last[count:])]


def _selective_scan(
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
    dtype, dim = u.dtype, A.shape[0]
    u, delta = u.to(A.dtype), delta.to(A.dtype)
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state  # [B, D, N]
    steps = {"d": delta.permute(2, 0, 1), "x": (delta * u).permute(2, 0, 1)}  # [L, B, D]
    constants = {"A": A}
    for name, M in (("B", B), ("C", C)):
        if M.dim() == 2:
            constants[name] = M.clone()  # [D, N]; B and C may be one tensor, which scan refuses
        else:
            steps[name] = M.to(A.dtype).permute(3, 0, 1, 2)  # [L, B, G, N]
    if reset is not None:
        steps["keep"] = (~reset).to(A.dtype).T  # [L, B]
    groups = B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1
    if groups > 1:
        constants["group"] = torch.arange(dim, device=u.device) // (dim // groups)
    names = [*steps, *constants]

    def wide(M: Tensor, at: dict[str, Tensor]) -> Tensor:
        return M.index_select(1, at["group"]) if M.dim() == 3 and groups > 1 else M

    def step(h: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        at = dict(zip(names, given, strict=True))
        a = torch.exp(at["d"][..., None] * at["A"])
        a = 2 * a - 1 if negative else a
        if "keep" in at:
            h = h * at["keep"][:, None, None]
        h = a * h + at["x"][..., None] * wide(at["B"], at)
        return h, (h * wide(at["C"], at)).sum(-1)

    last, y = _scan(step, [h], list(steps.values()), tuple(constants.values()), reverse=reverse)
    y = y.permute(1, 2, 0)  # [B, D, L]
    if D is not None:
        y = y + u * D[:, None]
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(dtype), last, _nothing(u)


def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> Tensor:
    if seq_idx is not None:
        activation = "silu" if silu else None
        return causal_conv1d_reference(  # type: ignore[return-value]
            x, weight, bias, seq_idx, initial_states, activation=activation
        )
    before = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    if initial_states is not None:
        before = initial_states.to(x.dtype)
    padded = torch.cat([before, x], dim=2)
    bias = None if bias is None else bias.to(x.dtype)
    out = F.conv1d(padded, weight.to(x.dtype)[:, None], bias, groups=x.shape[1])
    return F.silu(out) if silu else out


def _diagonal_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    is_complex: bool,
    reverse: bool,
) -> Tensor:
    pair = (2,) if is_complex else (1,)
    a, b = (t.unflatten(-1, (-1, *pair)) for t in (a.expand(b.shape), b))  # [B, L, N, 1 or 2]
    h = torch.zeros_like(b[:, 0])
    if initial_state is not None:
        h = initial_state.unflatten(-1, (-1, *pair))
    inputs = [a.transpose(0, 1), b.transpose(0, 1)]
    if reset is not None:
        inputs.append((~reset).to(b.dtype).T)

    def step(h: Tensor, a: Tensor, b: Tensor, *keep: Tensor) -> tuple[Tensor, Tensor]:
        if keep:
            h = h * keep[0][:, None, None]
        if is_complex:
            ((ar, ai), (hr, hi)) = (t.unbind(-1) for t in (a, h))
            product = torch.stack([ar * hr - ai * hi, ar * hi + ai * hr], dim=-1)
        else:
            product = a * h
        h = product + b
        return h, h.clone()

    _, states = _scan(step, [h], inputs, reverse=reverse)
    return states.transpose(0, 1).flatten(-2)


def _recurrent_cell(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor, cell: int, keep_gates: bool
) -> tuple[Tensor, Tensor]:
    if keep_gates:
        raise ZooError("recurrent_cell: its gates are kept for gradients, which have no such form")

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        *now, Wx, R, b = given
        after, _ = step_of(CELLS[cell], Wx, R, b, tuple(now))
        return (*after, *(state.clone() for state in after))

    count = states.shape[0]
    found = _scan(step, list(states.unbind(0)), [Wx.transpose(0, 1)], (R, b))
    return torch.stack(found[count:]).transpose(1, 2), _nothing(Wx)


def _sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, x.shape[dim], dim, largest=descending, sorted=True)
    return values, indices


def _argsort(x: Tensor, **how: Any) -> Tensor:
    return _sort(x, **how)[1]


def _nothing(t: Tensor) -> Tensor:
    """Instead of what is kept for gradients."""
    return t.new_zeros(0)
