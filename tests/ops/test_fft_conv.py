from __future__ import annotations

import itertools

import pytest
import torch

from tests.ops.problems import TOLERANCE, error
from zoo.errors import ZooError
from zoo.ops import (
    butterfly_conv,
    butterfly_fft,
    butterfly_fft_reference,
    butterfly_sizes,
    fft_conv,
    fft_conv_reference,
    state_passing_conv,
    state_passing_conv_reference,
)
from zoo.ops.fft_conv import fast_length

SIZES = [(1, 1), (1, 3), (7, 7), (12, 5), (13, 31), (64, 64), (97, 97)]  # length, taps


def double(*shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def options(length: int, taps: int, outputs: int | None, form: str) -> dict:
    rows = (3,) if outputs is None else (outputs, 3)
    given = {"k": double(*rows, taps)}
    if form != "plain":
        given |= {"D": double(*rows), "gate_before": double(2, 3, length),
                  "gate_after": double(2, *rows, length)}  # fmt: skip
    if form == "both sides":
        given |= {"k_future": double(*rows, taps)}
    if form == "previous":
        given |= {"previous": double(2, 3, 4), "k_future": double(*rows, 2)}
    return given


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", ["plain", "gated", "both sides", "previous", "circular"])
def test_equals_reference(dtype, form):
    torch.manual_seed(0)
    for (length, taps), outputs in itertools.product(SIZES, (None, 1, 2)):
        if form == "circular" and taps > length:
            continue
        given = {"u": double(2, 3, length), **options(length, taps, outputs, form)}
        given = {name: t.bfloat16().double() for name, t in given.items()}
        circular = form == "circular"

        def run(function, dtype, given=given, circular=circular):
            leaves = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
            out = function(**leaves, circular=circular)
            assert out.dtype == dtype
            weights = torch.linspace(-1, 1, out.numel()).view_as(out)
            grads = torch.autograd.grad((out.double() * weights).sum(), leaves.values(),
                                        allow_unused=True, materialize_grads=True)  # fmt: skip
            return [out, *grads]

        expected = run(fft_conv_reference, torch.float64)
        for a, e in zip(run(fft_conv, dtype), expected, strict=True):
            assert error(a, e) < TOLERANCE[dtype] or (a - e).abs().max() < TOLERANCE[dtype] / 100


def test_reference_is_the_sum_that_the_contract_says():
    u, k, future = double(1, 1, 4)[0], double(1, 3), double(1, 2)
    y = fft_conv_reference(u, k, k_future=future)
    expected = [
        sum(k[0, s] * u[0, t - s] for s in range(3) if t - s >= 0)
        + sum(future[0, s] * u[0, t + 1 + s] for s in range(2) if t + 1 + s < 4)
        for t in range(4)
    ]
    torch.testing.assert_close(y[0], torch.stack(expected))


def test_parts_equal_one_piece():
    u, k = double(2, 3, 50), double(3, 9)
    whole = fft_conv(u, k)
    first = fft_conv(u[..., :20], k)
    second = fft_conv(u[..., 20:], k, previous=u[..., 12:20])
    torch.testing.assert_close(torch.cat([first, second], -1), whole)


def test_any_leading_dimensions():
    u, k = double(2, 4, 5, 3, 17), double(3, 17)
    torch.testing.assert_close(fft_conv(u, k).flatten(0, 2), fft_conv(u.flatten(0, 2), k))
    assert fft_conv(double(0, 3, 17), k).shape == (0, 3, 17)
    torch.testing.assert_close(fft_conv(u[0, 0, 0], k), fft_conv(u, k)[0, 0, 0])


def test_gradcheck():
    tensors = options(6, 4, 2, "previous")
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda u, *others: fft_conv(u, **dict(zip(names, others, strict=True))),
        (double(2, 3, 6).requires_grad_(), *(t.requires_grad_() for t in tensors.values())),
        fast_mode=True,
    )


def test_transforms_are_float32_under_autocast():
    u, k = torch.randn(2, 3, 100), torch.randn(3, 100)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fft_conv(u, k), fft_conv_reference(u, k), rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph():
    u, k, D = torch.randn(2, 3, 30), torch.randn(3, 30), torch.randn(3)
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u, k, D, gate_after=u), fft_conv(u, k, D, gate_after=u))


@pytest.mark.parametrize("change, words", [
    (dict(u=torch.randn(5)), "u must be"), (dict(k=torch.randn(4, 5)), "k must be"),
    (dict(D=torch.randn(4)), "D must be"), (dict(u=torch.randn(2, 3, 0)), "at least 1"),
    (dict(gate_before=torch.randn(2, 3, 4)), "gate_before must be"),
    (dict(gate_after=torch.randn(2, 3, 4)), "gate_after must be"),
    (dict(k_future=torch.randn(2, 4)), "k_future must be"),
    (dict(previous=torch.randn(3, 4)), "previous must be"),
    (dict(circular=True, k=torch.randn(3, 9)), "at least as many steps"),
    (dict(circular=True, k_future=torch.randn(3, 2)), "neither"),
    (dict(k=torch.randn(3, 5).double()), "float64"),
    (dict(k=torch.randn(3, 5, device="meta")), "one device"),
])  # fmt: skip
def test_wrong_arguments_are_refused(change, words):
    right = dict(u=torch.randn(2, 3, 5), k=torch.randn(3, 5))
    with pytest.raises(ZooError, match=words) as caught:
        fft_conv(**(right | change))
    assert "\n" not in str(caught.value)


def test_fast_length():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in range(1, 700):
        expected = next(n for n in itertools.count(least) if n % 2 == 0 and smooth(n))
        assert fast_length(least) == expected


@pytest.mark.parametrize("sizes", [(7,), (4, 4), (3, 5), (32, 32), (16, 16, 2), (2, 3, 4, 5)])
def test_butterfly_equals_fourier(sizes):
    n = torch.Size(sizes).numel()
    x = torch.randn(2, 3, n)
    expected = torch.fft.fft(x.double())
    assert error(butterfly_fft(x, sizes).real, expected.real) < 1e-6
    assert error(butterfly_fft(x, sizes).imag, expected.imag) < 1e-6
    torch.testing.assert_close(butterfly_fft_reference(x.double()), expected)


@pytest.mark.parametrize("sizes", [(16, 16), (16, 16, 2), (9, 3)])
def test_butterfly_multiplies_with_what_is_given(sizes):
    """Linear in each factor: a factor twice as large gives a spectrum twice as large, in its row
    of the broadcast alone."""
    n = torch.Size(sizes).numel()
    x = torch.randn(2, 3, n, dtype=torch.float64)
    for i, size in enumerate(sizes):
        fourier = torch.fft.fft(torch.eye(size, dtype=torch.complex128))
        scaled = fourier * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        matrices = [scaled if j == i else None for j in range(len(sizes))]
        expected = torch.fft.fft(x) * torch.tensor([1.0, 2.0, 3.0])[:, None]
        torch.testing.assert_close(butterfly_fft(x, sizes, matrices), expected)


@pytest.mark.parametrize("sizes", [(1024,), (32, 32), (16, 16, 4), (2, 16, 32)])
def test_three_passes_equal_one(sizes):
    u, k = torch.randn(2, 3, 500), torch.randn(3, 500)
    assert error(butterfly_conv(u, k, sizes), fft_conv_reference(u.double(), k.double())) < 1e-6


def test_butterfly_sizes_and_refusals():
    assert [butterfly_sizes(n) for n in (2, 16, 32, 4096, 8192)] == [
        (2,), (16,), (16, 2), (16, 16, 16), (16, 16, 16, 2)]  # fmt: skip
    u, k = torch.randn(3, 8), torch.randn(3, 8)
    for call, words in (
        (lambda: butterfly_sizes(12), "n must be a power of two"),
        (lambda: butterfly_sizes(16, 1), "largest must be a power of two"),
        (lambda: butterfly_sizes(16.0), "power of two"),
        (lambda: butterfly_fft(u, (-2, -4)), "whole numbers"),
        (lambda: butterfly_fft(u, (2, 4), [torch.randn(5, 2, 2), None]), "broadcast"),
        (lambda: butterfly_conv(u, k, ()), "whole numbers"),
        (lambda: butterfly_conv(u, k, (4.0, 4.0)), "whole numbers"),
        (lambda: butterfly_fft(u, (2, 3)), "multiply to the length"),
        (lambda: butterfly_fft(u, (2, 4), [None]), "each of 2 sizes"),
        (lambda: butterfly_fft(u, (2, 4), [None, torch.randn(2, 2)]), "size 4"),
        (lambda: butterfly_conv(u, k, (2, 4)), "at least 15"),
        (lambda: butterfly_conv(u, k[0], (4, 4)), "taps"),
        (lambda: butterfly_conv(u.half(), k, (4, 4)), "float32"),
    ):
        with pytest.raises(ZooError, match=words):
            call()


@pytest.mark.parametrize("chunk", [1, 7, 16, 100])
def test_state_passing_equals_steps(chunk):
    torch.manual_seed(0)
    u = torch.randn(2, 3, 50, dtype=torch.float64)
    log_A = torch.complex(-torch.rand(3, 4).double(), 3 * torch.randn(3, 4).double())
    B, C = (torch.randn(3, 4, dtype=torch.complex128) for _ in range(2))
    D, state = torch.randn(3).double(), torch.randn(2, 3, 4, dtype=torch.complex128)
    leaves = [t.requires_grad_() for t in (u, log_A, B, C, D, state)]
    found, expected = (
        function(u, log_A, B, C, D, initial_state=state, **more)
        for function, more in (
            (state_passing_conv, {"chunk": chunk}), (state_passing_conv_reference, {}))
    )  # fmt: skip
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    grads = [torch.autograd.grad(y.square().sum() + x.abs().sum(), leaves)
             for y, x in (found, expected)]  # fmt: skip
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e)
    without = state_passing_conv(u, log_A, B, C, chunk=chunk)[0]
    torch.testing.assert_close(without, state_passing_conv_reference(u, log_A, B, C)[0])


def test_state_passing_refuses():
    u, A = torch.randn(2, 3, 5), torch.randn(3, 4, dtype=torch.complex64)
    for arguments, words in (
        ((u[0], A, A, A), "u must be"), ((u, A.real, A, A), "log_A must be"),
        ((u, A, A[:2], A), "B must be"), ((u, A, A, A.to(torch.complex128)), "C must be"),
        ((u, A, A, A, torch.randn(5)), "D must be"), ((u.double(), A, A, A), "u must be"),
        ((u, A, A, A, torch.randn(3).double()), "D must be"),
    ):  # fmt: skip
        with pytest.raises(ZooError, match=words):
            state_passing_conv(*arguments)
    with pytest.raises(ZooError, match="chunk"):
        state_passing_conv(u, A, A, A, chunk=0)
