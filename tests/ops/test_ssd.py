from __future__ import annotations

import functools

import pytest
import torch

from tests.ops.problems import LAYOUTS, SSD_SIGNALS, TOLERANCE, Problem, compare, ssd_problem
from zoo.errors import ZooError
from zoo.ops._ssd_chunked import ssd_chunked
from zoo.ops.selective_scan import selective_scan_reference
from zoo.ops.ssd import ssd, ssd_reference

BATCH, HEADS, WIDTH, GROUPS, STATE = 2, 6, 5, 3, 4


def make(length, dtype=torch.float64, requires_grad=False):
    torch.manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_(requires_grad)

    return {
        "x": normal(BATCH, length, HEADS, WIDTH),
        "dt": normal(BATCH, length, HEADS),
        "A": (-torch.rand(HEADS, dtype=dtype)).requires_grad_(requires_grad),
        "B": normal(BATCH, length, GROUPS, STATE),
        "C": normal(BATCH, length, GROUPS, STATE),
        "D": normal(HEADS, WIDTH),
        "z": normal(BATCH, length, HEADS, WIDTH),
        "dt_bias": normal(HEADS),
        "initial_states": normal(BATCH, HEADS, WIDTH, STATE),
    }


PROBLEMS = {
    "one step": dict(batch=1, length=1, heads=1, channels=1, groups=1, state=1),
    "few states": dict(batch=2, length=37, heads=3, channels=20, groups=3, state=4),
    "part of a vector": dict(batch=2, length=70, heads=6, channels=5, groups=2, state=17),
    "whole vectors": dict(batch=1, length=130, heads=2, channels=48, groups=1, state=40),
    "several spans": dict(batch=1, length=520, heads=3, channels=3, groups=1, state=9),
    "more spans": dict(batch=1, length=300, heads=2, channels=9, groups=1, state=2),
    "wide heads": dict(batch=1, length=33, heads=1, channels=130, groups=1, state=12),
    "skip by head": dict(batch=2, length=20, heads=4, channels=6, groups=2, state=5,
                         skip_by_head=True),
    "nothing optional": dict(batch=1, length=66, heads=2, channels=16, groups=1, state=16,
                             absent="D z dt_bias initial_states seq_idx"),
    "no gate": dict(batch=1, length=66, heads=2, channels=16, groups=1, state=16,
                    absent="z seq_idx"),
    "no batch": dict(batch=0, length=3, heads=2, channels=2, groups=1, state=2),
}  # fmt: skip


@functools.cache
def problem_of(name: str) -> Problem:
    torch.manual_seed(0)
    return ssd_problem(**PROBLEMS[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(cpu_variant, dtype, layout):
    """Output, final states and all gradients against float64, in both directions."""
    for name in PROBLEMS:
        for reverse in (False, True):
            wrong = compare(
                ssd,
                ssd_reference,
                problem_of(name),
                SSD_SIGNALS,
                dtype,
                layout,
                dt_softplus=True,
                dt_limit=(0.01, 2.0),
                return_final_states=True,
                reverse=reverse,
            )
            assert not wrong, (name, reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_negative_decays(reverse):
    """Which linear attention computes: with borders, states, groups, skip and gate."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name in ("few states", "part of a vector", "skip by head", "nothing optional"):
            assert not compare(
                ssd, ssd_reference, problem_of(name), SSD_SIGNALS, dtype, dt_softplus=True,
                dt_limit=(0.01, 2.0), return_final_states=True, reverse=reverse, eig_range="pm1",
            ), name  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["few states", "part of a vector", "whole vectors", "no gate"])
@pytest.mark.parametrize("chunk", [1, 16, 256])
def test_pytorch_alone_gives_the_same(name, chunk, reverse):
    """What answers where no kernel is built."""
    problem = problem_of(name)
    tensors = dict(problem.tensors)
    dt = tensors.pop("dt") + tensors.pop("dt_bias")
    given = dict.fromkeys(("D", "z", "seq_idx")) | tensors
    found, state = ssd_chunked(
        given["x"], dt, *(given[n] for n in ("A", "B", "C", "D", "z", "initial_states", "seq_idx")),
        reverse, chunk,
    )  # fmt: skip
    (expected, last), _ = problem.expected(
        ssd_reference, dict(return_final_states=True, reverse=reverse)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("only", [0, 1], ids=["output", "final states"])
def test_gradient_of_one_result(only):
    def one(function):
        return lambda **inputs: function(**inputs, return_final_states=True)[only]

    assert not compare(one(ssd), one(ssd_reference), problem_of("part of a vector"), SSD_SIGNALS,
                       torch.float32)  # fmt: skip


def test_same_result_every_time_on_any_number_of_threads():
    before = torch.get_num_threads()
    leaves = problem_of("part of a vector").leaves("cpu", {}, "rows")
    wanted = [t for t in leaves.values() if t.requires_grad]
    results = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        results.append(torch.autograd.grad(ssd(**leaves).sum(), wanted))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results[1:], strict=True))
    for a, b in zip(*results[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_long_decays_lose_no_digits():
    """Far from the border of a chunk, whose cumulated decay is large, steps are still exact."""
    torch.manual_seed(0)
    problem = ssd_problem(1, 200, 2, 8, 1, 16, "D z dt_bias initial_states seq_idx")
    problem.tensors["dt"] = torch.where(torch.rand(1, 200, 2) < 0.1, 40.0, 2**-7).double()
    problem.tensors["A"] = torch.tensor([-16.0, -1.0]).double()
    assert not compare(ssd, ssd_reference, problem, SSD_SIGNALS, torch.float32)


def test_equal_numbers_apart_are_different_sequences():
    inputs = make(9)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0]] * BATCH)
    expected = ssd_reference(**inputs, seq_idx=ids.cumsum(1))
    torch.testing.assert_close(ssd(**inputs, seq_idx=ids), ssd_reference(**inputs, seq_idx=ids))
    assert not torch.equal(ssd(**inputs, seq_idx=ids), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_passing_the_state_on_continues_the_sequence(reverse):
    inputs = make(20)
    state, start = inputs.pop("initial_states"), inputs.pop("D")
    whole, last = ssd(
        **inputs, D=start, initial_states=state, chunk_size=8, return_final_states=True,
        reverse=reverse,
    )  # fmt: skip
    sequences = ("x", "dt", "B", "C", "z")
    halves = [slice(0, 12), slice(12, 20)]
    parts = {}
    for part in reversed(halves) if reverse else halves:
        cut = {k: v[:, part] if k in sequences else v for k, v in inputs.items()}
        y, state = ssd(
            **cut, D=start, initial_states=state, chunk_size=8, return_final_states=True,
            reverse=reverse,
        )  # fmt: skip
        parts[part.start] = y
    torch.testing.assert_close(torch.cat([parts[0], parts[12]], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_is_a_selective_scan_with_one_decay_a_head():
    inputs = make(11)
    y = ssd(
        **{k: inputs[k] for k in ("x", "dt", "A", "B", "C", "D")}, chunk_size=4, dt_softplus=True
    )

    def per_channel(t):  # [B, L, H] to [B, H P, L]
        return t.repeat_interleave(WIDTH, 2).transpose(1, 2)

    expected = selective_scan_reference(
        inputs["x"].flatten(2).transpose(1, 2),
        per_channel(inputs["dt"]),
        inputs["A"].repeat_interleave(WIDTH)[:, None].expand(-1, STATE),
        inputs["B"].permute(0, 2, 3, 1),
        inputs["C"].permute(0, 2, 3, 1),
        inputs["D"].flatten(),
        delta_softplus=True,
    )
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected)


def test_half_precision_is_computed_in_float32():
    inputs = make(40, torch.float32)
    half = {k: v.bfloat16() for k, v in inputs.items()}
    exact = ssd(**{k: v.float() for k, v in half.items()}, dt_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ssd(**half, dt_softplus=True, return_final_states=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y, exact.bfloat16())


def test_gradients():
    inputs = make(6, requires_grad=True)
    names = list(inputs)

    def function(*values):
        return ssd(**dict(zip(names, values, strict=True)), chunk_size=4, dt_softplus=True)

    torch.autograd.gradcheck(function, tuple(inputs.values()), fast_mode=True)


def test_second_derivative_is_refused():
    inputs = make(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(ssd(**inputs).sum(), inputs["x"], create_graph=True)
    with pytest.raises(ZooError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(optional):
    t = make(10, torch.float32, requires_grad=True)
    ids = torch.zeros(BATCH, 10, dtype=torch.int32)
    rest = (t["D"], t["z"], t["initial_states"], ids) if optional else (None,) * 4
    arguments = (*(t[n] for n in ("x", "dt", "A", "B", "C")), *rest, False, 256, 64)
    torch.library.opcheck(torch.ops.zoo.ssd.default, arguments)


def test_compiles_as_one_graph():
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (10, 12):
        inputs = make(length, torch.float32, requires_grad=True)
        found, expected = compiled(**inputs), ssd(**inputs)
        torch.testing.assert_close(found, expected)
        wanted = list(inputs.values())
        gradients = [torch.autograd.grad(y.sum(), wanted) for y in (found, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_exports():
    class Scan(torch.nn.Module):
        def forward(self, inputs):
            return ssd(**inputs, return_final_states=True)

    inputs = make(10, torch.float32)
    program = torch.export.export(Scan(), (inputs,))
    for a, b in zip(program.module()(inputs), Scan()(inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"ssd takes x \[B, L, H, P\]"),
        ({"x": torch.zeros(BATCH, 0, HEADS, WIDTH)}, "where only B may be 0"),
        ({"B": torch.zeros(BATCH, 5, 4, STATE)}, "6 heads cannot be divided among 4 groups"),
        ({"dt": torch.zeros(BATCH, 5, 2)}, r"dt has shape \(2, 5, 2\), expected \(2, 5, 6\)"),
        ({"chunk_size": 0}, "chunk_size is at least 1"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ZooError, match=message):
        ssd(**{**make(5), **changes})
