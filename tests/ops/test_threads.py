"""Kernels share out their work: the results are those of one thread."""

from random import Random

import pytest
import torch

from tests.fuzz import _calls
from tests.fuzz.ops import attempt, check_equal
from zoo.ops import _library

SEEDS = range(120)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_results_are_those_of_one_thread(seed):
    torch.manual_seed(seed)
    call = _calls.make(Random(seed))
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        answer = attempt(getattr(torch.ops.zoo, call.op), call.copy())
        assert not isinstance(answer, Exception), f"{call}: {answer}"
        found.append(answer)
    (one, written_by_one), (several, written_by_several) = found
    for name, a, b in zip(call.results(len(one)), several, one, strict=True):
        if name:
            check_equal(name, a, b, str(call))
    for place in call.changed:
        check_equal(
            f"argument {place}", written_by_several[place], written_by_one[place], str(call)
        )


def test_every_op_is_called():
    called = {_calls.make(Random(seed)).op for seed in SEEDS}
    assert called >= {name for name in _library.references if not name.endswith("_backward")}
