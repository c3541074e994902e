from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tests.ops.problems import TOLERANCE, Problem, cell_problem, compare
from zoo.errors import ZooError
from zoo.ops import recurrent_cell, recurrent_cell_reference
from zoo.ops.recurrent_cell import CELLS, _reference_backward

#: batch, length, heads, channels
SIZES = [(1, 1, 1, 1), (3, 9, 2, 5), (26, 4, 1, 16), (2, 60, 3, 7), (5, 3, 2, 33), (0, 3, 1, 2)]


@functools.cache
def problem_of(cell: str, *sizes: int) -> Problem:
    torch.manual_seed(0)
    return cell_problem(cell, *sizes)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_reference(cpu_variant, cell, dtype):
    """All states, the last ones and all gradients against float64."""
    for sizes in SIZES:
        wrong = compare(recurrent_cell, recurrent_cell_reference, problem_of(cell, *sizes), "Wx",
                        dtype, cell=cell)  # fmt: skip
        assert not wrong, sizes


@pytest.mark.parametrize("cell", CELLS)
def test_pytorch_alone_gives_the_same_gradients(cell):
    """What answers where no kernel is built."""
    leaves = problem_of(cell, 3, 9, 2, 5).leaves("cpu", {}, "rows")
    Wx, R, b, start = (t.detach() for t in leaves.values())
    start = start[:, :, 0].contiguous()
    found, gates = torch.ops.zoo.recurrent_cell(Wx, R, b, start, CELLS.index(cell), True)
    given = (torch.randn_like(found), found, gates, R, start, CELLS.index(cell))
    kernel = torch.ops.zoo.recurrent_cell_backward(*given)
    for a, c in zip(kernel, _reference_backward(*given), strict=True):
        torch.testing.assert_close(a, c)


TORCH = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("cell", TORCH)
def test_one_head_is_the_network_of_torch(cell):
    torch.manual_seed(0)
    network = TORCH[cell](6, 10, batch_first=True)
    x = torch.randn(4, 15, 6, requires_grad=True)
    states = {"lstm": 2}.get(cell, 1)
    start = torch.randn(states, 4, 1, 1, 10, requires_grad=True)
    first = tuple(start[:, :, 0, 0][:, None]) if cell == "lstm" else start[:1, :, 0, 0]
    expected, last = network(x, first)
    last = torch.cat(last) if cell == "lstm" else last
    wanted = [x, start, *network.parameters()]
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(
        (expected * cotangent).sum() + last.square().sum(), wanted, retain_graph=True
    )

    def gates(t):
        return t.unflatten(0, (-1, 10))[:, None]

    W, R, bias, recurrent_bias = (gates(p) for p in network.parameters())
    inputs = torch.einsum("btp,gndp->btgnd", x, W)
    if cell == "gru":  # r, z, n there
        R, b = (
            R[[2, 0, 1]],
            torch.cat([recurrent_bias[2:], bias[:2] + recurrent_bias[:2], bias[2:]]),
        )
    else:
        b = bias + recurrent_bias
    found, found_last = recurrent_cell(inputs, R, b, start, cell)
    torch.testing.assert_close(found[0, :, :, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_last[:, :, 0, 0], last, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(
        (found[0, :, :, 0] * cotangent).sum() + found_last.square().sum(), wanted
    )
    for a, c in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_heads_are_a_matrix_of_blocks(cell):
    Wx, R, b, start = problem_of(cell, 3, 9, 2, 5).leaves("cpu", {}, "rows").values()
    found, last = recurrent_cell(Wx, R, b, start, cell)
    blocks = torch.stack([torch.block_diag(*gate) for gate in R])[:, None]
    one, one_last = recurrent_cell(
        Wx.flatten(3)[..., None, :], blocks, b.flatten(1)[:, None],
        start.flatten(3)[..., None, :], cell,
    )  # fmt: skip
    torch.testing.assert_close(found.flatten(3), one.flatten(3))
    torch.testing.assert_close(last.flatten(3), one_last.flatten(3))


@pytest.mark.parametrize("cell", CELLS)
def test_passing_the_states_on_continues_the_sequence(cell):
    Wx, R, b, start = problem_of(cell, 2, 60, 3, 7).leaves("cpu", {}, "rows").values()
    whole, last = recurrent_cell(Wx, R, b, start, cell)
    first, states = recurrent_cell(Wx[:, :23], R, b, start, cell)
    second, states = recurrent_cell(Wx[:, 23:], R, b, states, cell)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)
    torch.testing.assert_close(states, last)


def test_slstm_does_not_depend_on_its_scale():
    """Input and forget gates far beyond what exp can hold, and a start at another scale."""
    torch.manual_seed(0)
    Wx, R, b = torch.randn(2, 12, 4, 1, 6).double(), torch.randn(4, 1, 6, 6).double() / 4, None
    b = torch.zeros(4, 1, 6).double()
    Wx[:, :, 0] += 500
    found, _ = recurrent_cell(Wx.float(), R.float(), b.float(), cell="slstm")
    expected, _ = recurrent_cell(Wx, R, b, cell="slstm")
    assert found.isfinite().all()
    torch.testing.assert_close(found[0].double(), expected[0], atol=1e-4, rtol=1e-4)
    start = torch.randn(4, 2, 1, 1, 6).double()
    start[2] = start[2].abs() + 30
    other = start.clone()
    other[1:3] *= 3.0
    other[3] -= torch.tensor(3.0).double().log()
    a, c = (recurrent_cell(Wx - 500, R, b, s, cell="slstm")[0][0] for s in (start, other))
    torch.testing.assert_close(a, c)


def test_slstm_is_what_it_would_be_without_a_scale():
    torch.manual_seed(0)
    Wx = torch.randn(2, 8, 4, 1, 3).double()
    R, b = torch.randn(4, 1, 3, 3).double() / 4, torch.randn(4, 1, 3).double()
    found, _ = recurrent_cell(Wx, R, b, cell="slstm")
    h = c = n = torch.zeros(2, 1, 3).double()
    for t in range(8):
        i, f, z, o = (Wx[:, t] + torch.einsum("gndp,bnp->bgnd", R, h) + b).unbind(1)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        torch.testing.assert_close(found[0, :, t], h)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell):
    torch.manual_seed(0)
    leaves = cell_problem(cell, 2, 4, 2, 3).leaves("cpu", {}, "rows")
    if cell == "slstm":  # away from the corners where n is 0 and where it is cut off
        with torch.no_grad():
            leaves["states"][2] += 3

    def function(*values):
        return recurrent_cell(*values, cell=cell)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_and_compile(cell):
    torch.manual_seed(0)
    names = dict.fromkeys(("Wx", "R", "b", "states"), torch.float32)
    leaves = cell_problem(cell, 2, 4, 2, 3).leaves("cpu", names, "rows")
    Wx, R, b, start = leaves.values()
    flat = start.detach()[:, :, 0].contiguous().requires_grad_()
    given = (Wx, R, b, flat, CELLS.index(cell), True)
    torch.library.opcheck(torch.ops.zoo.recurrent_cell.default, given)
    compiled = torch.compile(recurrent_cell, fullgraph=True, backend="aot_eager")
    outs = compiled(Wx, R, b, start, cell), recurrent_cell(Wx, R, b, start, cell)
    torch.testing.assert_close(*outs)
    grads = [torch.autograd.grad(o[0].square().sum(), (Wx, R, b, start)) for o in outs]
    for a, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(cell="rnn"), "recurrent_cell: cell"),
        (dict(Wx=torch.zeros(2, 3, 3, 1, 4)), "Wx of a lstm is [B, T, 4, heads, channels]"),
        (dict(R=torch.zeros(3, 1, 4, 4)), "R of a lstm has shape (3, 1, 4, 4)"),
        (dict(b=torch.zeros(4, 4)), "b of a lstm"),
        (dict(states=torch.zeros(1, 2, 1, 1, 4)), "expected (2, 2, 1, 1, 4)"),
        (dict(b=torch.zeros(4, 1, 4, device="meta")), "b is on meta and Wx on cpu"),
        (dict(b=torch.zeros(4, 1, 4, dtype=torch.int64)), "b must be float32"),
    ],
)
def test_wrong_arguments(change, words):
    right = dict(Wx=torch.zeros(2, 3, 4, 1, 4), R=torch.zeros(4, 1, 4, 4), b=torch.zeros(4, 1, 4))
    with pytest.raises(ZooError) as caught:
        recurrent_cell(**(right | change))
    assert words in str(caught.value)
