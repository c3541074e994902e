"""Sums of complex exponentials: over modes, and over time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.problems import error
from zoo.errors import ZooError
from zoo.ops import (
    vandermonde_kernel,
    vandermonde_kernel_reference,
    vandermonde_transpose,
    vandermonde_transpose_reference,
)

SIZES = [(1, 1, 1, 1), (2, 3, 5, 17), (3, 2, 4, 512), (5, 1, 9, 700), (0, 2, 3, 4), (1, 2, 3, 0),
         (1, 4, 33, 2100)]  # fmt: skip


def modes(features: int, count: int) -> Tensor:
    return torch.complex(-torch.rand(features, count) / 8, 3 * torch.randn(features, count)).to(
        torch.complex128
    )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_reference(cpu_variant, size, dtype):
    torch.manual_seed(0)
    rows, features, count, length = size
    x = modes(features, count).to(dtype).to(torch.complex128)
    v = torch.randn(rows, features, count, dtype=torch.complex128)
    u = torch.randn(rows, features, length, dtype=torch.float64)
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    limit = 3e-6 if dtype == torch.complex64 else 1e-12

    def both(ours, reference, first, kind, *rest):
        wide = [t.clone().requires_grad_() for t in (first, x)]
        narrow = [first.to(kind).requires_grad_(), x.to(dtype).requires_grad_()]
        expected, found = reference(*wide, *rest), ours(*narrow, *rest)
        assert found.shape == expected.shape and found.is_contiguous()
        assert error(torch.view_as_real(found + 0j), torch.view_as_real(expected + 0j)) < limit
        cotangent = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, wide, cotangent)
        got = torch.autograd.grad(found, narrow, cotangent.to(found.dtype))
        for a, b, name in zip(got, wanted, ("first", "x"), strict=True):
            assert error(torch.view_as_real(a + 0j), torch.view_as_real(b + 0j)) < limit, name

    both(vandermonde_kernel, vandermonde_kernel_reference, v, dtype, length)
    both(vandermonde_transpose, vandermonde_transpose_reference, u, real)


def test_phases_stay_exact_over_a_long_sequence():
    """In float32 a phase of 5e4 would be off by 2e-3; here none is ever formed."""
    x = torch.tensor([[-1e-5 + 3.1j, -0.5 + 0.2j]], dtype=torch.complex64)
    v = torch.tensor([[1 - 2j, 3 + 1j]], dtype=torch.complex64)
    expected = vandermonde_kernel_reference(v.to(torch.complex128), x.to(torch.complex128), 16384)
    assert error(vandermonde_kernel(v, x, 16384), expected) < 3e-6


def test_growing_and_dying_modes():
    """One overflows as exp does, one is gone at once, and neither makes a NaN of the other."""
    x = torch.tensor([[0.3 + 0.1j, -40 + 1j, -90 + 0j]], dtype=torch.complex64)
    v = torch.ones(1, 3, dtype=torch.complex64)
    expected = vandermonde_kernel_reference(v, x, 260)
    torch.testing.assert_close(vandermonde_kernel(v, x, 260), expected, rtol=1e-4, atol=1e-6)
    gone = torch.full((1, 2), -50 + 1j, dtype=torch.complex64)
    out = vandermonde_kernel(v[:, :2], gone, 5000)
    assert out[0, 0] == 4 and (out[0, 600:] == 0).all()


def test_any_leading_dimensions_and_layouts():
    torch.manual_seed(0)
    x = modes(3, 4).conj()
    v = torch.randn(4, 2, 5, 3, dtype=torch.complex128).permute(1, 2, 3, 0).conj()
    out = vandermonde_kernel(v, x, 9)
    assert out.shape == (2, 5, 3, 9)
    torch.testing.assert_close(out, vandermonde_kernel_reference(v, x, 9))
    u = torch.randn(2, 9, 3, dtype=torch.float64).mT
    expected = vandermonde_transpose_reference(u, x)
    torch.testing.assert_close(vandermonde_transpose(u, x), expected)
    torch.testing.assert_close(vandermonde_transpose(u[0], x), expected[0])


def test_one_is_the_transpose_of_the_other():
    torch.manual_seed(0)
    x, v = modes(2, 3), torch.randn(1, 2, 3, dtype=torch.complex128)
    u = torch.randn(1, 2, 40, dtype=torch.float64)
    left = (vandermonde_kernel(v, x, 40) * u).sum()
    torch.testing.assert_close(left, 2 * (v * vandermonde_transpose(u, x)).sum().real)


def test_gradients(cpu_variant):
    torch.manual_seed(0)
    x, v = modes(2, 5).requires_grad_(), torch.randn(2, 2, 5, dtype=torch.complex128)
    u = torch.randn(2, 2, 19, dtype=torch.float64).requires_grad_()
    v.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, x: vandermonde_kernel(v, x, 19), (v, x), fast_mode=True
    )
    assert torch.autograd.gradcheck(vandermonde_transpose, (u, x), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda v: vandermonde_kernel(v, x.detach(), 19), v, fast_mode=True
    )
    for function in (lambda x: vandermonde_kernel(v, x, 7), lambda x: vandermonde_transpose(u, x)):
        first = torch.autograd.grad(function(x).abs().sum(), x, create_graph=True)[0]
        with pytest.raises(ZooError, match="no second derivative"):
            first.abs().sum().backward()


def test_opcheck():
    v, x, u = torch.randn(2, 3, 4, 2), torch.randn(3, 4, 2) / 9, torch.randn(2, 3, 8)
    for t in (v, x, u):
        t.requires_grad_()
    torch.library.opcheck(torch.ops.zoo.vandermonde_kernel.default, (v, x, 8))
    torch.library.opcheck(torch.ops.zoo.vandermonde_transpose.default, (u, x, 1))
    torch.library.opcheck(torch.ops.zoo.vandermonde_transpose.default, (u.detach(), x.detach(), 2))


def test_compile_with_changing_lengths():
    def there_and_back(v, x, length):
        return vandermonde_transpose(vandermonde_kernel(v, x, length), x)

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend="aot_eager")
    x, v = modes(2, 3), torch.randn(1, 2, 3, dtype=torch.complex128)
    for length in (9, 12):
        torch.testing.assert_close(compiled(v, x, length), there_and_back(v, x, length))


c64, c128 = torch.complex64, torch.complex128


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda v, x: vandermonde_kernel(v[..., :2], x, 4), "v [..., H, N]"),
        (lambda v, x: vandermonde_kernel(v, x[0], 4), "x [H, N]"),
        (lambda v, x: vandermonde_kernel(v, x.to(c128), 4), "complex64 and torch.complex128"),
        (lambda v, x: vandermonde_kernel(v.real, x.real, 4), "torch.float32"),
        (lambda v, x: vandermonde_kernel(v, x, -1), "length is at least 0, got -1"),
        (lambda v, x: vandermonde_kernel(v.to("meta"), x, 4), "meta and cpu"),
        (lambda v, x: vandermonde_transpose(v.real[0, 0], x), "u [..., H, L]"),
        (lambda v, x: vandermonde_transpose(v, x), "u must be float32"),
        (lambda v, x: vandermonde_transpose(v.real.double(), x), "torch.float64 and"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ZooError) as error:
        call(torch.randn(2, 3, 4, dtype=c64), torch.randn(3, 4, dtype=c64))
    assert words in str(error.value)
