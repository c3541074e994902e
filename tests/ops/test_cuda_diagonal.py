"""The CUDA kernels of the diagonal scan, as test_cuda.py tests the others."""

from __future__ import annotations

import pytest
import torch

from tests.ops.problems import error
from tests.ops.test_cuda import DEVICE, kernels, pytestmark  # noqa: F401
from tests.ops.test_diagonal_scan import DTYPES, FORMS, factors, run
from zoo.ops import diagonal_scan, diagonal_scan_reference

#: Parts of the kernels are 64 steps long.
SHAPES = [(2, 5, 3), (1, 64, 7), (3, 65, 37), (2, 200, 70), (0, 4, 5)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_equals_reference(dtype, form, reverse):
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float64)
    for shape in SHAPES:
        batch, length, channels = shape
        a, b = factors(form, *shape, dtype), torch.randn(shape, dtype=dtype)
        initial = torch.randn(batch, channels, dtype=dtype)
        for extra in (False, True):
            tensors = [a, b, initial if extra else None]
            reset = torch.rand(batch, length) < 0.05 if extra else None
            there = [None if t is None else t.to(DEVICE) for t in tensors]
            reset_there = None if reset is None else reset.to(DEVICE)
            ours = run(diagonal_scan, there, dtype, reset=reset_there, reverse=reverse)
            expected = run(diagonal_scan_reference, tensors, wide, reset=reset, reverse=reverse)
            for found, right in zip(ours, expected, strict=True):
                assert error(found, right) < DTYPES[dtype]
