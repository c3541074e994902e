"""Sums of conjugate pairs of poles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ops.problems import error
from zoo.errors import ZooError
from zoo.ops import cauchy_kernel, cauchy_kernel_reference

SIZES = [(1, 1, 1, 1), (2, 3, 5, 17), (4, 2, 4, 256), (7, 1, 9, 300), (0, 2, 3, 4), (1, 2, 3, 0),
         (4, 3, 33, 700)]  # fmt: skip
COMPLEX = [torch.complex64, torch.complex128]


def problem(rows: int, features: int, poles: int, points: int, dtype: torch.dtype) -> list[Tensor]:
    """In complex128, with numbers that ``dtype`` has."""
    torch.manual_seed(0)
    v = torch.randn(rows, features, poles, dtype=torch.complex128)
    z = 2j * (math.pi * torch.arange(points).double() / (2 * points + 1)).tan()
    w = torch.complex(-torch.rand(features, poles) - 0.01, torch.randn(features, poles))
    return [t.to(dtype).to(torch.complex128) for t in (v, z, w)]


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_reference(cpu_variant, size, dtype):
    v, z, w = problem(*size, dtype)
    limit = 3e-6 if dtype == torch.complex64 else 1e-12
    wide = [v.clone().requires_grad_(), w.clone().requires_grad_()]
    narrow = [v.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()]
    expected = cauchy_kernel_reference(wide[0], z, wide[1])
    found = cauchy_kernel(narrow[0], z.to(dtype), narrow[1])
    assert found.shape == expected.shape and found.is_contiguous()
    real = torch.view_as_real
    assert error(real(found), real(expected)) < limit
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, wide, cotangent)
    got = torch.autograd.grad(found, narrow, cotangent.to(dtype))
    for a, b, name in zip(got, wanted, "vw", strict=True):
        assert error(real(a), real(b)) < limit, name


@pytest.mark.parametrize("near", [1e-3, 1e-6])
def test_close_to_a_pole_it_is_as_exact_as_the_distance(cpu_variant, near):
    w = torch.tensor([[complex(-near, 3.0)]], dtype=torch.complex64)
    v, z = torch.tensor([[0.5 - 2j]], dtype=torch.complex64), torch.tensor([3j]).to(w.dtype)
    expected = cauchy_kernel_reference(*(t.to(torch.complex128) for t in (v, z, w)))
    assert error(torch.view_as_real(cauchy_kernel(v, z, w)), torch.view_as_real(expected)) < 1e-5


def test_far_and_near_are_in_range(cpu_variant):
    w = torch.tensor([[-0.5 + 3j]], dtype=torch.complex64)
    v, z = torch.ones(1, 1, dtype=w.dtype), torch.tensor([5e8j, -5e8 + 0j], dtype=w.dtype)
    torch.testing.assert_close(cauchy_kernel(v, z, w)[0], 2 / z, rtol=1e-5, atol=0)
    close = torch.tensor([[-1e-8 + 2e-8j]], dtype=w.dtype)
    expected = cauchy_kernel_reference(v, 0 * z, close)
    torch.testing.assert_close(cauchy_kernel(v, 0 * z, close), expected, rtol=1e-5, atol=0)


def test_any_leading_dimensions_and_layouts():
    v, z, w = problem(10, 3, 4, 9, torch.complex128)
    v = v.permute(1, 2, 0).contiguous().permute(2, 0, 1).conj().view(2, 5, 3, 4)
    expected = cauchy_kernel_reference(v, z.conj(), w)
    torch.testing.assert_close(cauchy_kernel(v, z.conj(), w), expected)
    torch.testing.assert_close(cauchy_kernel(v[0, 0], z.conj(), w), expected[0, 0])


def test_gradients(cpu_variant):
    v, z, w = problem(3, 2, 5, 19, torch.complex128)
    v.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: cauchy_kernel(v, z, w), (v, w), fast_mode=True)
    first = torch.autograd.grad(cauchy_kernel(v, z, w).abs().sum(), w, create_graph=True)[0]
    with pytest.raises(ZooError, match="no second derivative"):
        first.abs().sum().backward()


def test_opcheck():
    v, z, w = (torch.view_as_real(t) for t in problem(2, 3, 4, 8, torch.complex64))
    v, w = v.clone().requires_grad_(), w.clone().requires_grad_()
    torch.library.opcheck(torch.ops.zoo.cauchy_kernel.default, (v, z, w))


def test_compile_with_changing_lengths():
    compiled = torch.compile(cauchy_kernel, fullgraph=True, dynamic=True, backend="aot_eager")
    for points in (9, 12):
        v, z, w = problem(2, 3, 4, points, torch.complex128)
        torch.testing.assert_close(compiled(v, z, w), cauchy_kernel(v, z, w))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda v, z, w: cauchy_kernel(v[..., :2], z, w), "v [..., H, N]"),
        (lambda v, z, w: cauchy_kernel(v, z[None], w), "got [2, 3, 4], [1, 8] and [3, 4]"),
        (lambda v, z, w: cauchy_kernel(v, z, w[:0]), "at least 1"),
        (lambda v, z, w: cauchy_kernel(v, z.to(torch.complex128), w), "all be complex64"),
        (lambda v, z, w: cauchy_kernel(v.real, z.real, w.real), "torch.float32"),
        (lambda v, z, w: cauchy_kernel(v, z.to("meta"), w), "meta"),
        (lambda v, z, w: cauchy_kernel(v, z.requires_grad_(), w), "z gets no gradient"),
        (
            lambda v, z, w: torch.ops.zoo.cauchy_kernel(
                torch.view_as_real(v),
                torch.view_as_real(z).requires_grad_(),
                torch.view_as_real(w),
            ),
            "z gets no gradient",
        ),
    ],
)
def test_errors(call, words):
    v, z, w = (t.to(torch.complex64) for t in problem(2, 3, 4, 8, torch.complex64))
    with pytest.raises(ZooError) as error:
        call(v, z, w)
    assert words in str(error.value)
