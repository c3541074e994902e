"""The CUDA kernels against float64 on the CPU. `pytest -m gpu` runs this file where a GPU is.

Without one, test_cuda_emulated.py runs it with ZOO_CUDA_EMULATION: the path of a library in which
the same kernels stand as kernels for the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys

import pytest
import torch
from torch import Tensor

import zoo.ops
from tests.ops import problems
from tests.ops.problems import (
    LAYOUTS,
    NOTHING_OPTIONAL,
    SSD_SIGNALS,
    TOLERANCE,
    Problem,
    error,
    exact,
    scan_problem,
    scan_sequences,
    ssd_problem,
    state_dtype,
)
from zoo.ops import _library

EMULATED = os.environ.get("ZOO_CUDA_EMULATION")
DEVICE = "cpu" if EMULATED else "cuda"
compare = functools.partial(problems.compare, device=DEVICE)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not EMULATED and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True, scope="module")
def kernels():
    if not EMULATED:
        if torch.cuda.is_available():
            assert "cuda" not in _library.unavailable, _library.unavailable["cuda"]
        yield
        return
    torch.ops.load_library(EMULATED)
    sys.modules["zoo.ops.selective_scan"]._chunk = lambda u, A: 64
    sys.modules["zoo.ops.ssd"]._span = lambda x: 64
    launches = ctypes.CDLL(EMULATED).cuda_emulation_launches
    launches.restype = ctypes.c_long
    yield
    assert launches() > 0, "the emulated kernels have not run"


SCANS = {
    "one step": dict(batch=1, dim=1, length=1, state=1),
    "one tile": dict(batch=2, dim=8, length=64, state=3, groups=2),
    "many channels and states": dict(batch=1, dim=40, length=150, state=17),
    "chunks": dict(batch=1, dim=6, length=700, state=2, groups=2),
    "bare": dict(batch=2, dim=6, length=100, state=4, groups=3, absent=NOTHING_OPTIONAL),
    "constant B": dict(batch=2, dim=6, length=600, state=2, groups=3, constant="B"),
    "constant C": dict(batch=2, dim=6, length=100, state=4, constant="C", softplus=False),
    "constant both": dict(batch=2, dim=6, length=100, state=4, constant="BC"),
    "no resets": dict(batch=1, dim=33, length=132, state=1, absent="reset"),
}


@pytest.mark.parametrize("eig_range", ["01", "pm1"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("case", SCANS)
def test_selective_scan(case, reverse, eig_range):
    torch.manual_seed(0)
    options = SCANS[case]
    problem = scan_problem(**options)
    sequences = scan_sequences(options.get("constant", ""))
    assert not compare(
        zoo.ops.selective_scan,
        zoo.ops.selective_scan_reference,
        problem,
        sequences,
        torch.float32,
        delta_softplus=options.get("softplus", True),
        return_last_state=True,
        reverse=reverse,
        eig_range=eig_range,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_selective_scan_dtypes_and_layouts(dtype, layout):
    torch.manual_seed(0)
    for length, reverse in ((140, False), (66, True)):
        assert not compare(
            zoo.ops.selective_scan,
            zoo.ops.selective_scan_reference,
            scan_problem(2, 12, length, 2, groups=2),
            scan_sequences(""),
            dtype,
            layout,
            delta_softplus=True,
            return_last_state=True,
            reverse=reverse,
        )


@pytest.mark.parametrize("only", [0, 1], ids=["output", "last state"])
def test_selective_scan_gradient_of_one(only):
    torch.manual_seed(0)

    def one(function):
        return lambda **inputs: function(**inputs, return_last_state=True)[only]

    assert not compare(
        one(zoo.ops.selective_scan),
        one(zoo.ops.selective_scan_reference),
        scan_problem(1, 3, 80, 2, softplus=False),
        scan_sequences(""),
        torch.float32,
    )


STEPS = {
    "plain": ((2, 37, 5), (2, 5)),
    "groups": ((2, 12, 33), (2, 3, 33)),
    "heads": ((2, 6, 20, 16), (2, 2, 16)),
    "many states": ((1, 4, 3, 130), (1, 1, 130)),
}


@pytest.mark.parametrize("dtype, kept", [
    (torch.float32, torch.float32), (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32),
    (torch.float64, torch.float64),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("eig_range", ["01", "pm1"])
def test_selective_state_update(case, dtype, kept, eig_range):
    torch.manual_seed(0)
    shape, projection = STEPS[case]
    given = {
        "state": exact(*shape), "x": exact(*shape[:-1]), "dt": exact(*shape[:-1]),
        "A": -exact(*shape[1:]).abs(), "B": exact(*projection), "C": exact(*projection),
        "D": exact(*shape[1:-1]), "z": exact(*shape[:-1]), "dt_bias": exact(*shape[1:-1]),
    }  # fmt: skip
    kinds = dict.fromkeys(("A", "D", "dt_bias"), state_dtype(dtype)) | {"state": kept}
    ours = {n: t.clone().to(DEVICE, kinds.get(n, dtype)) for n, t in given.items()}
    options = dict(dt_softplus=True, eig_range=eig_range)
    out = zoo.ops.selective_state_update(**ours, **options)
    expected = zoo.ops.selective_state_update_reference(**given, **options)
    assert error(out, expected) < TOLERANCE[dtype]
    assert error(ours["state"], given["state"]) < TOLERANCE[kept]


SSDS = {
    "one step": dict(batch=1, length=1, heads=1, channels=1, groups=1, state=1),
    "one chunk": dict(batch=2, length=64, heads=4, channels=20, groups=2, state=5),
    "chunks": dict(batch=1, length=140, heads=2, channels=17, groups=1, state=16),
    "several tiles": dict(batch=1, length=70, heads=1, channels=70, groups=1, state=80),
    "bare": dict(batch=1, length=70, heads=2, channels=4, groups=1, state=3,
                 absent="D z dt_bias initial_states seq_idx"),
    "skip by head": dict(batch=1, length=9, heads=2, channels=4, groups=1, state=3,
                         skip_by_head=True),
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("case", SSDS)
def test_ssd(case, reverse):
    torch.manual_seed(0)
    assert not compare(
        zoo.ops.ssd,
        zoo.ops.ssd_reference,
        ssd_problem(**SSDS[case]),
        SSD_SIGNALS,
        torch.float32,
        dt_softplus=True,
        return_final_states=True,
        reverse=reverse,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ssd_dtypes_and_layouts(dtype, layout):
    torch.manual_seed(0)
    assert not compare(
        zoo.ops.ssd,
        zoo.ops.ssd_reference,
        ssd_problem(1, 70, 2, 9, 1, 7),
        SSD_SIGNALS,
        dtype,
        layout,
        dt_softplus=True,
    )


@pytest.mark.parametrize("only", [0, 1], ids=["output", "final states"])
def test_ssd_gradient_of_one(only):
    torch.manual_seed(0)

    def one(function):
        return lambda **inputs: function(**inputs, return_final_states=True)[only]

    problem = ssd_problem(1, 70, 2, 5, 1, 4, absent="z")
    assert not compare(one(zoo.ops.ssd), one(zoo.ops.ssd_reference), problem, SSD_SIGNALS,
                       torch.float32)  # fmt: skip


CONV_SEQUENCES = "x initial_states"
CONV_WIDTHS = (1, 2, 3, 4, 7)  # the first and the last go through the kernels for any width


def conv_problem(batch, dim, length, width, extra="", bias=True) -> Problem:
    return Problem(
        x=exact(batch, dim, length),
        weight=exact(dim, width),
        bias=exact(dim) if bias else None,
        initial_states=exact(batch, dim, width - 1) if extra == "initial_states" else None,
        seq_idx=torch.randint(-1, 3, (batch, length)).sort(1).values.int()
        if extra == "seq_idx"
        else None,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_causal_conv1d(dtype, layout):
    torch.manual_seed(0)
    shapes = [(1, 1, 1), (2, 6, 3), (1, 68, 70), (2, 4, 300)]
    extras = ["", "seq_idx", "initial_states"]
    for i, (shape, width) in enumerate(itertools.product(shapes, CONV_WIDTHS)):
        assert not compare(
            zoo.ops.causal_conv1d,
            zoo.ops.causal_conv1d_reference,
            conv_problem(*shape, width, extras[i % 3], bias=i % 2 == 0),
            CONV_SEQUENCES,
            dtype,
            layout,
            activation="silu" if i % 4 < 2 else None,
            return_final_states=i % 5 == 0,
        ), (shape, width)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_causal_conv1d_update(dtype):
    torch.manual_seed(0)
    shapes = [(1, 1, 1, 0), (2, 5, 1, 1), (3, 300, 4, 3), (2, 3, 9, 2)]
    for (batch, dim, length, spare), width, circular in itertools.product(
        shapes, CONV_WIDTHS, (False, True)
    ):
        size = width - 1 + spare
        x, state = exact(batch, dim, length), exact(batch, dim, size)
        weight, bias = exact(dim, width), exact(dim)
        positions = torch.randint(0, 20, (batch,)).int() if circular else None
        ours, expected = state.to(DEVICE, dtype), state.clone()
        out = zoo.ops.causal_conv1d_update(
            x.to(DEVICE, dtype), ours, weight.to(DEVICE, state_dtype(dtype)),
            bias.to(DEVICE, state_dtype(dtype)), "silu",
            None if positions is None else positions.to(DEVICE),
        )  # fmt: skip
        reference = zoo.ops.causal_conv1d_update_reference(
            x, expected, weight, bias, "silu", positions
        )
        assert error(out, reference) < TOLERANCE[dtype]
        assert torch.equal(ours.double().cpu(), expected)


@pytest.mark.parametrize("layout", ["rows", "channels last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("order", ["cross2d", "atrous"])
def test_cross_scan_and_merge(order, dtype, layout):
    torch.manual_seed(0)
    for B, C, H, W in [(2, 3, 1, 1), (2, 5, 7, 7), (1, 70, 5, 8), (1, 2, 65, 70), (3, 17, 20, 33)]:
        x = exact(B, C, H, W).to(DEVICE, dtype)
        if layout == "channels last":
            x = x.to(memory_format=torch.channels_last)
        ys = zoo.ops.cross_scan(x, order)
        assert torch.equal(ys.cpu(), zoo.ops.cross_scan_reference(x.cpu(), order))
        ys = exact(*ys.shape)
        merged = zoo.ops.cross_merge(ys.to(DEVICE, dtype), H, W, order)
        expected = zoo.ops.cross_merge_reference(ys, H, W, order)
        assert torch.equal(merged.cpu(), expected.to(dtype))


def small_scan(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    problem = scan_problem(1, 3, 9, 2)
    kinds = {n: dtype if n in "u delta z B C" else state_dtype(dtype) for n in problem.tensors}
    return problem.leaves(DEVICE, kinds, "rows")


def test_gradcheck():
    inputs = small_scan(torch.float64)
    reset = inputs.pop("reset")
    assert torch.autograd.gradcheck(
        lambda *tensors: zoo.ops.selective_scan(
            **dict(zip(inputs, tensors, strict=True)),
            delta_softplus=True,
            return_last_state=True,
            reset=reset,
        ),
        tuple(inputs.values()),
        fast_mode=bool(EMULATED),
    )
    torch.manual_seed(0)
    conv = conv_problem(2, 3, 5, 4, "initial_states").leaves(DEVICE, {}, "rows")
    assert torch.autograd.gradcheck(
        lambda *tensors: zoo.ops.causal_conv1d(
            **dict(zip(conv, tensors, strict=True)), activation="silu"
        ),
        tuple(conv.values()),
        fast_mode=True,
    )
    for order in zoo.ops.cross_scan.__globals__["ORDERS"]:
        x = exact(1, 2, 3, 4).to(DEVICE).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, o=order: zoo.ops.cross_scan(x, o), (x,), fast_mode=True
        )


def test_opcheck():
    t = small_scan(torch.float32)
    torch.library.opcheck(
        torch.ops.zoo.selective_scan.default,
        (t["u"], t["delta"], t["A"], t["B"], t["C"], t["D"], t["z"], t["delta_bias"],
         t["initial_state"], t["reset"], True, False, True, 64),
    )  # fmt: skip
    x = exact(2, 3, 7).float().to(DEVICE).requires_grad_()
    weight = exact(3, 4).float().to(DEVICE).requires_grad_()
    torch.library.opcheck(torch.ops.zoo.causal_conv1d.default, (x, weight, None, None, None, True))
    picture = exact(1, 2, 4, 5).float().to(DEVICE).requires_grad_()
    torch.library.opcheck(torch.ops.zoo.cross_scan.default, (picture, True))
    s = ssd_problem(1, 9, 2, 3, 1, 2, "dt_bias seq_idx").leaves(DEVICE, {}, "rows")
    torch.library.opcheck(
        torch.ops.zoo.ssd.default,
        (s["x"], s["dt"], s["A"], s["B"], s["C"], s["D"], s["z"], s["initial_states"], None, False,
         64, 64),
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.zoo.cross_merge.default, (exact(1, 2, 3, 20).float().to(DEVICE), 4, 5, False)
    )


def test_results_do_not_vary():
    torch.manual_seed(0)
    problem = scan_problem(2, 40, 200, 3)
    first, second = (
        torch.autograd.grad(
            zoo.ops.selective_scan(**leaves, delta_softplus=True).sum(),
            [t for t in leaves.values() if t.requires_grad],
        )
        for leaves in [
            problem.leaves(DEVICE, dict.fromkeys(problem.tensors, torch.float32), "rows")
        ]
        * 2
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
