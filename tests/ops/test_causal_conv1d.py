from __future__ import annotations

import functools
import itertools

import pytest
import torch

from zoo.errors import ZooError
from zoo.ops import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}
WIDTHS = [1, 2, 3, 4, 7]  # 2 to 4 have kernels of their own
SHAPES = [(2, 5, 1), (2, 33, 2), (1, 20, 37), (0, 4, 5)]
PROBLEMS = [*itertools.product(SHAPES, WIDTHS), ((2, 5, 70), 64)]
LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "half": lambda x: torch.cat([x, x], dim=1)[:, x.shape[1] :],
    "half of columns": lambda x: torch.cat([x, x], 1).mT.contiguous().mT[:, x.shape[1] :],
    "neither": lambda x: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=1)[:, ::2, ::2],
}


def error(a, b) -> float:
    """Largest deviation relative to the largest value."""
    if b.numel() == 0:
        return 0.0
    return ((a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-12)).item()


def exact(*shape) -> torch.Tensor:
    """Random numbers that every dtype here can hold."""
    return torch.randn(shape).bfloat16().double()


def leaf(t, dtype):
    return None if t is None else t.detach().to(dtype).requires_grad_()


def run(function, dtype, arrange, x, weight, bias, initial, ids, dout, dfinal, activation):
    """Output, final state and all gradients."""
    parameter = torch.promote_types(dtype, torch.float32)
    dtypes = (dtype, parameter, parameter, dtype)
    leaves = [leaf(t, d) for t, d in zip((x, weight, bias, initial), dtypes, strict=True)]
    out, final = function(
        arrange(leaves[0]), leaves[1], leaves[2], ids, leaves[3], True, activation
    )
    assert out.dtype == final.dtype == dtype
    ((out.double() * dout).sum() + (final.double() * dfinal).sum()).backward()
    return [out.detach(), final.detach(), *(t.grad for t in leaves if t is not None)]


@functools.cache
def problems() -> list[tuple[tuple, list[torch.Tensor]]]:
    """Arguments of :func:`run` and what the reference answers in float64."""
    torch.manual_seed(0)
    found = []
    for ((B, D, L), width), extra, activation in itertools.product(
        PROBLEMS, ("", "seq_idx", "initial"), (None, "silu")
    ):
        problem = (
            exact(B, D, L),
            exact(D, width),
            exact(D) if activation else None,
            exact(B, D, width - 1) if extra == "initial" else None,
            torch.randint(-1, 3, (B, L)).sort(1).values.int() if extra == "seq_idx" else None,
            exact(B, D, L),
            exact(B, D, width - 1),
            activation,
        )
        expected = run(causal_conv1d_reference, torch.float64, LAYOUTS["rows"], *problem)
        found.append((problem, expected))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(cpu_variant, dtype, layout):
    """Outputs, final states and all gradients against float64."""
    worst = 0.0
    for problem, expected in problems():
        ours = run(causal_conv1d, dtype, LAYOUTS[layout], *problem)
        for a, e in zip(ours, expected, strict=True):
            worst = max(worst, error(a, e))
    assert worst < TOLERANCE[dtype]


@functools.cache
def update_problems() -> list[tuple[tuple, torch.Tensor, torch.Tensor]]:
    """Arguments of an update, the reference's output and state in float64."""
    torch.manual_seed(0)
    found = []
    for (B, D), length, width, spare, circular, activation in itertools.product(
        ((2, 5), (1, 33)), (None, 1, 7), [*WIDTHS, 64], (0, 1, 3), (False, True), (None, "silu")
    ):
        x = exact(B, D) if length is None else exact(B, D, length)
        state, weight, bias = exact(B, D, width - 1 + spare), exact(D, width), exact(D)
        seen = torch.randint(0, 9, (B,)).int() if circular else None
        after = state.clone()
        out = causal_conv1d_update_reference(x, after, weight, bias, activation, seen)
        found.append(((x, state, weight, bias, activation, seen), out, after))
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_update_equals_reference(cpu_variant, dtype):
    for (x, state, weight, bias, activation, seen), expected, after in update_problems():
        ours = state.to(dtype, copy=True)
        out = causal_conv1d_update(
            x.to(dtype), ours, weight.to(dtype), bias.to(dtype), activation, seen
        )
        assert error(out, expected) < TOLERANCE[dtype]
        assert error(ours, after) == 0


@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize("circular", [False, True])
def test_steps_equal_one_pass(circular, width):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 11), torch.randn(6, width), torch.randn(6)
    whole = causal_conv1d(x, weight, bias, activation="silu")
    state = torch.zeros(2, 6, width + 1)
    steps = []
    for t in range(11):
        seen = torch.full((2,), t, dtype=torch.int32) if circular else None
        steps.append(causal_conv1d_update(x[:, :, t], state, weight, bias, "silu", seen))
    torch.testing.assert_close(torch.stack(steps, 2), whole)


@pytest.mark.parametrize("width", [1, 4, 7, 64])
def test_parts_equal_one_pass(width):
    x, weight = torch.randn(2, 6, 11), torch.randn(6, width)
    first, state = causal_conv1d(x[..., :2], weight, return_final_states=True)
    second, _ = causal_conv1d(x[..., 2:], weight, initial_states=state, return_final_states=True)
    torch.testing.assert_close(torch.cat([first, second], 2), causal_conv1d(x, weight))


def test_packed_equals_separate():
    a, b, weight = torch.randn(1, 6, 5), torch.randn(1, 6, 7), torch.randn(6, 4)
    ids = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    packed = causal_conv1d(torch.cat([a, b], 2), weight, seq_idx=ids, activation="silu")
    separate = [causal_conv1d(t, weight, activation="silu") for t in (a, b)]
    torch.testing.assert_close(packed, torch.cat(separate, 2))


def test_keeps_the_layout():
    columns = torch.randn(2, 7, 5).transpose(1, 2)
    assert causal_conv1d(columns, torch.randn(5, 3)).stride() == columns.stride()


def test_gradcheck():
    def double(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    for rows, width in itertools.product((True, False), (1, 4, 6)):
        x = double(2, 4, 6) if rows else double(2, 6, 4)
        assert torch.autograd.gradcheck(
            lambda x, w, b, i, rows=rows: causal_conv1d(
                x if rows else x.mT, w, b, None, i, True, "silu"
            ),
            (x, double(4, width), double(4), double(2, 4, width - 1)),
            fast_mode=True,
        )
    state = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w, b: causal_conv1d_update(x, state.clone(), w, b, "silu"),
        (double(2, 4), double(4, 4), double(4)),
        fast_mode=True,
    )


def test_opcheck():
    x, weight, bias = torch.randn(2, 4, 9), torch.randn(4, 4), torch.randn(4)
    ids = torch.tensor([[0] * 9, [0] * 4 + [1] * 5], dtype=torch.int32)
    x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
    op = torch.ops.zoo.causal_conv1d.default
    torch.library.opcheck(op, (x, weight, bias, ids, None, True))
    torch.library.opcheck(op, (x.detach().mT.contiguous().mT, weight, None, None, None, False))
    torch.library.opcheck(
        torch.ops.zoo.causal_conv1d_update.default,
        (x.detach(), torch.randn(2, 4, 3), weight.detach(), None, None, True),
    )


def test_compile_and_autocast():
    def block(x, weight):
        out, state = causal_conv1d(x, weight, return_final_states=True, activation="silu")
        return out, causal_conv1d_update(out[..., -1].detach(), state.detach().clone(),
                                         weight.detach())  # fmt: skip

    x, weight = torch.randn(2, 4, 9), torch.randn(4, 4, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, weight), block(x, weight), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        out = causal_conv1d(x.bfloat16(), weight)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), causal_conv1d(x, weight), rtol=2e-2, atol=2e-2)


X = torch.randn(2, 4, 9)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: causal_conv1d(X[0], X[0, :, :3]), "x must be [batch, dim, length]"),
        (lambda: causal_conv1d(X[..., :0], X[0, :, :3]), "got [2, 4, 0]"),
        (lambda: causal_conv1d(X, torch.ones(4, 65)), "a width of 1 to 64"),
        (lambda: causal_conv1d(X, torch.ones(4, 0)), "a width of 1 to 64"),
        (lambda: causal_conv1d(X, X[0, :3, :4]), "weight must be [4, width]"),
        (lambda: causal_conv1d(X, X[0, :, :4], X[0, :3, 0]), "bias must be [4]"),
        (lambda: causal_conv1d(X, X[0, :, :4], activation="relu"), "got 'relu'"),
        (lambda: causal_conv1d(X, X[0, :, :4], initial_states=X[..., :2]), "[2, 4, 3]"),
        (lambda: causal_conv1d(X, X[0, :, :4], seq_idx=torch.zeros(2, 9)), "int32 [2, 9]"),
        (
            lambda: causal_conv1d(
                X, X[0, :, :4], None, torch.zeros(2, 9, dtype=torch.int32), X[..., :3]
            ),
            "exclude each other",
        ),
        (lambda: causal_conv1d(X.int(), X[0, :, :4]), "got torch.int32"),
        (lambda: causal_conv1d_update(X, X[..., :2], X[0, :, :4]), ">= 3"),
        (lambda: causal_conv1d_update(X, X[..., :3].double(), X[0, :, :4]), "must agree"),
        (
            lambda: causal_conv1d_update(
                X, X[..., :3], X[0, :, :4], cache_seqlens=torch.zeros(3, dtype=torch.int32)
            ),
            "int32 [2]",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(ZooError) as error:
        call()
    assert words in str(error.value)
