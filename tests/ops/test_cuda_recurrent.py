"""The CUDA kernels of the delta rule and of recurrent cells, as test_cuda.py tests the others."""

from __future__ import annotations

import pytest
import torch

from tests.ops.problems import DELTA_SIGNALS, cell_problem, delta_problem
from tests.ops.test_cuda import compare, kernels, pytestmark  # noqa: F401
from zoo.ops import (
    delta_rule,
    delta_rule_reference,
    linear_attention,
    linear_attention_reference,
    recurrent_cell,
    recurrent_cell_reference,
)
from zoo.ops.recurrent_cell import CELLS

DELTAS = {
    "one step": dict(batch=1, length=1, heads=1, state=1, channels=1),
    "spans": dict(batch=2, length=70, heads=2, state=11, channels=5),
    "blocks of columns": dict(batch=1, length=34, heads=1, state=9, channels=40),
    "no decay": dict(batch=1, length=33, heads=2, state=3, channels=4, absent="decay"),
    "bare": dict(batch=1, length=9, heads=1, state=4, channels=33, absent="decay initial_state"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", DELTAS)
def test_delta_rule(case, dtype):
    torch.manual_seed(0)
    options = DELTAS[case]
    assert not compare(delta_rule, delta_rule_reference, delta_problem(**options), DELTA_SIGNALS,
                       dtype, return_final_state=True)  # fmt: skip
    without = delta_problem(**(options | {"absent": options.get("absent", "") + " beta"}))
    assert not compare(linear_attention, linear_attention_reference, without, DELTA_SIGNALS, dtype,
                       return_final_state=True)  # fmt: skip


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (9, 5, 2, 7), (2, 12, 3, 20), (1, 2, 1, 130)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_cell(cell, sizes):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        assert not compare(recurrent_cell, recurrent_cell_reference, cell_problem(cell, *sizes),
                           "Wx", dtype, cell=cell)  # fmt: skip
