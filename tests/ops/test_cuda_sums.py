"""The CUDA kernels of sums over poles and modes, as test_cuda.py tests the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.problems import error
from tests.ops.test_cauchy_kernel import problem
from tests.ops.test_cuda import DEVICE, kernels, pytestmark  # noqa: F401
from tests.ops.test_vandermonde_kernel import modes
from zoo.ops import (
    cauchy_kernel,
    cauchy_kernel_reference,
    vandermonde_kernel,
    vandermonde_kernel_reference,
    vandermonde_transpose,
    vandermonde_transpose_reference,
)

LIMITS = {torch.complex64: 3e-6, torch.complex128: 1e-12}
#: Rows, features, poles or modes, points or steps. A thread has 4 rows, a block 128 points, shared
#: memory 32 poles or 8 modes; the steps of a thread are 256 apart.
SIZES = [(1, 1, 1, 1), (5, 2, 3, 17), (2, 1, 33, 140), (1, 2, 9, 1100), (0, 2, 3, 4), (1, 2, 3, 0)]
pytestmark = [*pytestmark, pytest.mark.parametrize("dtype", LIMITS, ids=str)]


def compare(function, reference, wide: list[Tensor], narrow: list[Tensor], limit: float) -> None:
    """Outputs and gradients of all arguments, on the GPU against float64 on the CPU."""
    wide = [t.clone().requires_grad_() for t in wide]
    narrow = [t.to(DEVICE).requires_grad_() for t in narrow]
    expected, found = reference(*wide), function(*narrow)
    assert found.shape == expected.shape
    cotangent = torch.randn_like(expected)
    wanted = [expected, *torch.autograd.grad(expected, wide, cotangent)]
    got = [found, *torch.autograd.grad(found, narrow, cotangent.to(found))]
    for a, b in zip(got, wanted, strict=True):
        assert (
            error(torch.view_as_real(a.detach() + 0j), torch.view_as_real(b.detach() + 0j)) < limit
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cauchy_kernel(size, dtype):
    v, z, w = problem(*size, dtype)
    points = z.to(dtype).to(DEVICE)
    compare(lambda v, w: cauchy_kernel(v, points, w),
            lambda v, w: cauchy_kernel_reference(v, z, w),
            [v, w], [v.to(dtype), w.to(dtype)], LIMITS[dtype])  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_vandermonde_kernel(size, dtype):
    torch.manual_seed(0)
    rows, features, count, length = size
    x = modes(features, count).to(dtype).to(torch.complex128)
    v = torch.randn(rows, features, count, dtype=torch.complex128)
    compare(lambda v, x: vandermonde_kernel(v, x, length),
            lambda v, x: vandermonde_kernel_reference(v, x, length),
            [v, x], [v.to(dtype), x.to(dtype)], LIMITS[dtype])  # fmt: skip
    u = torch.randn(rows, features, length, dtype=torch.float64)
    compare(vandermonde_transpose, vandermonde_transpose_reference, [u, x],
            [u.to(dtype.to_real()), x.to(dtype)], LIMITS[dtype])  # fmt: skip


def test_phases_stay_exact_over_a_long_sequence(dtype):
    x = torch.tensor([[-1e-5 + 3.1j, -0.5 + 0.2j]], dtype=torch.complex64)
    v = torch.tensor([[1 - 2j, 3 + 1j]], dtype=torch.complex64)
    expected = vandermonde_kernel_reference(v.to(torch.complex128), x.to(torch.complex128), 4096)
    found = vandermonde_kernel(v.to(dtype).to(DEVICE), x.to(dtype).to(DEVICE), 4096)
    assert error(found, expected) < LIMITS[dtype]
