"""Recurrent networks that are not linear, with one recurrent matrix a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.devices import without_autocast
from zoo.errors import ZooError, check_choice
from zoo.ops import _registered
from zoo.ops._checks import FLOATS, check_one_device
from zoo.ops._library import recording, register

#: In the order of the kernels.
CELLS = ("elman", "lstm", "gru", "slstm")
#: Largest exponents that are still finite.
_MOST = {torch.float32: 80, torch.float64: 700}


def recurrent_cell(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None, cell: str = "lstm"
) -> tuple[Tensor, Tensor]:
    r"""A recurrent network over a sequence whose heads do not see each other (FlashRNN,
    arXiv 2412.07752).

    With :math:`x_t` the row of ``Wx``, per head and gate :math:`\bar g = x_t + R\,h_{t-1} + b`:

    - ``"elman"``: :math:`h = \tanh \bar g`
    - ``"lstm"``, gates i, f, z, o: :math:`c = \sigma(\bar f)\,c' + \sigma(\bar i)\tanh \bar z`,
      :math:`h = \sigma(\bar o) \tanh c`; that of :class:`torch.nn.LSTM`
    - ``"gru"``: :math:`h = u\,h' + (1 - u) \tanh(\bar n + r\,\bar g)`,
      :math:`r = \sigma(\bar r)`, :math:`u = \sigma(\bar z)`; g has no input and n no recurrence,
      so that the gates are r, z, n in ``Wx``, g, r, z in ``R`` and g, r, z, n in ``b``;
      that of :class:`torch.nn.GRU`
    - ``"slstm"``, gates i, f, z, o and states h, c, n, m (xLSTM, arXiv 2405.04517):
      :math:`m = \max(\bar i, \log\sigma(\bar f) + m')`, :math:`i = e^{\bar i - m}`,
      :math:`f = e^{\log\sigma(\bar f) + m' - m}`, :math:`c = f c' + i \tanh \bar z`,
      :math:`n = \max(f n' + i, 1)`, :math:`h = \sigma(\bar o)\,c / n`; where n' is 0, m is
      :math:`\bar i`

    Args:
        Wx: [B, T, gates, N, D], what the input contributes to the gates of N heads.
        R: [gates, N, D, D], from the last dimension to the one before.
        b: [gates, N, D].
        states: [S, B, 1, N, D], those before the first step, h first; zeros by default.
        cell: "elman", "lstm", "gru" or "slstm", with 1, 2, 1 and 4 states.

    Returns:
        all states [S, B, T, N, D] and the last ones [S, B, 1, N, D], in the dtype of Wx. All
        arithmetic is float32 (float64 if Wx is). Both are differentiable, once; the gradient is
        exact, that of m included, which the authors' kernels take for a constant.

    Raises:
        ZooError: if shapes, dtypes or devices do not fit, or the cell is unknown.
    """
    given = _given(Wx, R, b, states, cell)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    found, _ = torch.ops.zoo.recurrent_cell(*given, CELLS.index(cell), needs_grad)
    found = found.to(Wx.dtype)
    return found, found[:, :, -1:]


def recurrent_cell_reference(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None, cell: str = "lstm"
) -> tuple[Tensor, Tensor]:
    """:func:`recurrent_cell` one step after the other, to be read and to be compared with."""
    found, _ = _steps(*_given(Wx, R, b, states, cell), cell)
    found = found.to(Wx.dtype)
    return found, found[:, :, -1:]


def _steps(Wx: Tensor, R: Tensor, b: Tensor, states: Tensor, cell: str) -> tuple[Tensor, Tensor]:
    """States [S, B, T, N, D] and gates before activation [B, T, kept, N, D]."""
    now = tuple(states)  # [B, N, D] each
    found, gates = [], []
    for t in range(Wx.shape[1]):
        now, raw = step_of(cell, Wx[:, t], R, b, now)
        found.append(torch.stack(now))
        gates.append(raw)
    return torch.stack(found, dim=2), torch.stack(gates, dim=1)


def step_of(
    cell: str, Wx: Tensor, R: Tensor, b: Tensor, states: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One step [B, gates, N, D] from states [B, N, D]: new ones, and gates before activation."""
    recurrent = torch.einsum("gndp,bnp->bgnd", R, states[0])
    if cell == "gru":  # g of R alone, n of Wx alone
        raw = F.pad(recurrent, (0, 0, 0, 0, 0, 1)) + F.pad(Wx, (0, 0, 0, 0, 1, 0)) + b
    else:
        raw = Wx + recurrent + b
    return _STEP[cell](raw.unbind(1), *states), raw


def _elman(raw: tuple[Tensor, ...], h: Tensor) -> tuple[Tensor]:
    return (torch.tanh(raw[0]),)


def _lstm(raw: tuple[Tensor, ...], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, z, o = raw
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(raw: tuple[Tensor, ...], h: Tensor) -> tuple[Tensor]:
    g, r, z, n = raw
    u = torch.sigmoid(z)
    return (u * h + (1 - u) * torch.tanh(n + torch.sigmoid(r) * g),)


def _slstm(
    raw: tuple[Tensor, ...], h: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    i, f, z, o = raw
    kept = F.logsigmoid(f) + m
    offered = torch.where(n == 0, -torch.inf, kept)  # nothing to keep: i alone sets the scale
    new = torch.where(i >= offered, i, offered)
    enter, keep = torch.exp(i - new), torch.exp((kept - new).clamp(max=_MOST[n.dtype]))
    c = keep * c + enter * torch.tanh(z)
    n = keep * n + enter
    n = torch.where(n >= 1, n, 1.0)  # clamp has no gradient at 1, where every sequence begins
    return torch.sigmoid(o) * c / n, c, n, new


def _given(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, cell: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments of the registered op."""
    check_choice("recurrent_cell: cell", cell, CELLS)
    inputs, recurrent, biases, _, count = _registered.CELL_SIZES[CELLS.index(cell)]
    if Wx.dim() != 5 or Wx.shape[2] != inputs or 0 in Wx.shape[1:]:
        raise ZooError(
            f"recurrent_cell: Wx of a {cell} is [B, T, {inputs}, heads, channels], none but B 0, "
            f"not {tuple(Wx.shape)}"
        )
    batch, _, _, heads, channels = Wx.shape
    expected = {
        "Wx": (Wx, tuple(Wx.shape)),
        "R": (R, (recurrent, heads, channels, channels)),
        "b": (b, (biases, heads, channels)),
        "states": (states, (count, batch, 1, heads, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ZooError(
                f"recurrent_cell: {name} of a {cell} has shape {tuple(tensor.shape)}, "
                f"expected {shape}"
            )
        if tensor.dtype not in FLOATS:
            raise ZooError(
                f"recurrent_cell: {name} must be float32, bfloat16, float16 or float64, got "
                f"{tensor.dtype}"
            )
    check_one_device("recurrent_cell", Wx=Wx, R=R, b=b, states=states)
    compute = torch.promote_types(Wx.dtype, torch.float32)
    start = Wx.new_zeros(count, batch, heads, channels) if states is None else states[:, :, 0]
    with without_autocast(Wx):
        given = [t.to(compute).contiguous() for t in (Wx, R, b, start)]
    return given[0], given[1], given[2], given[3]


#: One step of each cell: gates before activation and states to states.
_STEP: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "elman": _elman, "lstm": _lstm, "gru": _gru, "slstm": _slstm,
}  # fmt: skip


def _reference(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor, cell: int, keep_gates: bool
) -> tuple[Tensor, Tensor]:
    found, gates = _steps(Wx, R, b, states, CELLS[cell])
    return found.contiguous(), gates.contiguous() if keep_gates else gates.new_empty(0)


def _reference_backward(
    dstates: Tensor, states: Tensor, gates: Tensor, R: Tensor, initial_states: Tensor, cell: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the step before each gate, which holds all that its gradient needs."""
    kept = gates.shape[2]
    step = _STEP[CELLS[cell]]
    dgates = torch.empty_like(gates)
    dR, db = torch.zeros_like(R), gates.new_zeros(kept, *gates.shape[3:])
    d = torch.zeros_like(initial_states)
    for t in reversed(range(gates.shape[1])):
        before = (states[:, :, t - 1] if t else initial_states).detach().requires_grad_()
        raw = gates[:, t].detach().requires_grad_()
        with torch.enable_grad():
            after = torch.stack(step(raw.unbind(1), *before))
            draw, d = torch.autograd.grad(
                after, (raw, before), d + dstates[:, :, t], allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
        recurrent = draw[:, : R.shape[0]]
        dR += torch.einsum("bgnd,bnp->gndp", recurrent, before[0])
        d = d.clone()
        d[0] += torch.einsum("bgnd,gndp->bnp", recurrent, R)
        dgates[:, t] = draw
        db += draw.sum(0)
    return dgates, dR, db, d


def _fake_backward(
    dstates: Tensor, states: Tensor, gates: Tensor, R: Tensor, initial_states: Tensor, cell: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    biases = gates.new_empty(gates.shape[2:])
    return tuple(t.new_empty(t.shape) for t in (gates, R, biases, initial_states))  # type: ignore


def _fake(
    Wx: Tensor, R: Tensor, b: Tensor, states: Tensor, cell: int, keep_gates: bool
) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, channels = Wx.shape
    gates = (batch, length, b.shape[0], heads, channels) if keep_gates else (0,)
    found = Wx.new_empty(states.shape[0], batch, length, heads, channels)
    return found, Wx.new_empty(gates)


register("recurrent_cell", check=_registered.recurrent_cell, reference=_reference, fake=_fake)
register(
    "recurrent_cell_backward",
    check=_registered.recurrent_cell_backward,
    reference=recording(_reference_backward),
    fake=_fake_backward,
)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    Wx, R, _, initial, ctx.cell, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, R, initial)
    ctx.inputs = Wx.shape[2]


def _backward(ctx: Any, dstates: Tensor, dgates: None) -> tuple[Tensor | None, ...]:
    found, dR, db, dinitial = torch.ops.zoo.recurrent_cell_backward(
        dstates.contiguous(), *ctx.saved_tensors, ctx.cell
    )
    dWx = found[:, :, found.shape[2] - ctx.inputs :]  # of a GRU all but g
    return dWx, dR, db, dinitial, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise ZooError(
        "recurrent_cell has no second derivative; recurrent_cell_reference, which is slower, has"
    )


torch.library.register_autograd("zoo::recurrent_cell", _backward, setup_context=_keep)
torch.library.register_autograd("zoo::recurrent_cell_backward", _no_second_derivative)
