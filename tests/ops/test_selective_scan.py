from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from tests.grids import BOTH, some
from tests.ops.problems import (
    LAYOUTS,
    NOTHING_OPTIONAL,
    TOLERANCE,
    Problem,
    compare,
    error,
    scan_problem,
    scan_sequences,
)
from zoo.errors import ZooError
from zoo.ops import selective_scan, selective_scan_reference

EIG_RANGES = ("01", "pm1")
PROBLEMS = {
    "one step": dict(batch=1, dim=1, length=1, state=1),
    "two steps": dict(batch=2, dim=5, length=2, state=16, groups=5),
    "groups": dict(batch=2, dim=12, length=67, state=3, groups=2),
    "several vectors": dict(batch=1, dim=35, length=33, state=8),
    "several chunks": dict(batch=2, dim=18, length=261, state=5, groups=2),
    "many states": dict(batch=1, dim=17, length=70, state=64),
    "more states": dict(batch=1, dim=3, length=40, state=131),
    "constant B": dict(batch=2, dim=6, length=70, state=4, groups=3, constant="B"),
    "constant C": dict(batch=2, dim=6, length=70, state=5, constant="C"),
    "constant both": dict(batch=2, dim=20, length=140, state=1, constant="BC"),
    "nothing optional": dict(batch=2, dim=6, length=50, state=4, absent=NOTHING_OPTIONAL),
    "no batch": dict(batch=0, dim=4, length=3, state=2),
}


@functools.cache
def problem_of(name: str) -> Problem:
    torch.manual_seed(0)
    return scan_problem(**PROBLEMS[name], softplus=name != "groups")


@pytest.fixture
def threads():
    """Set the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(cpu_variant, dtype, layout):
    """Output, last state and all gradients against float64, in both directions."""
    for name, sizes in PROBLEMS.items():
        for reverse, eig_range in itertools.product(BOTH, EIG_RANGES):
            wrong = compare(
                selective_scan,
                selective_scan_reference,
                problem_of(name),
                scan_sequences(sizes.get("constant", "")),
                dtype,
                layout,
                delta_softplus=name != "groups",
                return_last_state=True,
                reverse=reverse,
                eig_range=eig_range,
            )
            assert not wrong, (name, reverse, eig_range)


@pytest.mark.parametrize(
    "absent, softplus, last, reverse, eig_range, constant",
    some(
        60,
        [" ".join(n for i, n in enumerate(NOTHING_OPTIONAL.split()) if bits >> i & 1)
         for bits in range(32)],
        BOTH, BOTH, BOTH, EIG_RANGES, ("", "B", "C", "BC"),
    ),
)  # fmt: skip
def test_every_combination_of_arguments(absent, softplus, last, reverse, eig_range, constant):
    torch.manual_seed(0)
    assert not compare(
        selective_scan,
        selective_scan_reference,
        scan_problem(2, 4, 21, 3, 2, constant, absent, softplus),
        scan_sequences(constant),
        torch.float32,
        delta_softplus=softplus,
        return_last_state=last,
        reverse=reverse,
        eig_range=eig_range,
    )


@pytest.mark.parametrize("only", [0, 1], ids=["output", "last state"])
def test_gradient_of_one_result(only):
    torch.manual_seed(0)

    def one(function):
        return lambda **inputs: function(**inputs, return_last_state=True)[only]

    problem = scan_problem(2, 5, 150, 3, softplus=False)
    names = scan_sequences()
    assert not compare(one(selective_scan), one(selective_scan_reference), problem, names,
                       torch.float32)  # fmt: skip


@pytest.mark.parametrize("shape", [dict(dim=3, state=2), dict(dim=40, state=16, groups=2)], ids=str)
@pytest.mark.parametrize("reverse, eig_range", [(False, "01"), (True, "01"), (False, "pm1")])
def test_sequence_cut_among_threads(threads, shape, reverse, eig_range):
    """Few channels: every thread has a part of the sequence."""
    torch.manual_seed(0)
    problem = scan_problem(1, length=5000, **shape)
    problem.tensors["A"][:, 0] = -1e-4  # which still remembers the first part in the last one
    threads(7)

    def one_thread(**inputs):
        threads(1)
        result = selective_scan(**inputs)
        threads(7)
        return result

    options = dict(
        delta_softplus=True, return_last_state=True, reverse=reverse, eig_range=eig_range
    )
    for dtype in (torch.float64, torch.float32):
        assert not compare(selective_scan, one_thread, problem, scan_sequences(), dtype, **options)


def test_same_result_every_time(threads):
    for n in (1, 3):
        threads(n)
        torch.manual_seed(0)
        leaves = scan_problem(2, 40, 300, 5).leaves("cpu", {}, "rows")
        wanted = [t for t in leaves.values() if t.requires_grad]
        first, second = (
            torch.autograd.grad(selective_scan(**leaves, delta_softplus=True).sum(), wanted)
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_million_steps_do_not_drift():
    """With constant inputs the state is a geometric series, whose sum is known.

    All that may be wrong is the rounding of the decay, near 1, to float32.
    """
    length, step = 1_000_000, 0.5
    u, ones = torch.ones(1, 2, length), torch.ones(1, 1, length)
    A = torch.tensor([[-1e-5], [-1e-3]])
    y = selective_scan(u, torch.full_like(u, step), A, ones, ones)
    t = torch.arange(1, length + 1, dtype=torch.float64)
    exponent = step * A.double()
    expected = step * torch.expm1(exponent * t) / torch.expm1(exponent)
    relative = ((y[0].double() - expected) / expected).abs()
    assert (relative < 2**-23 / -exponent).all()


def test_a_million_random_steps():
    torch.manual_seed(0)
    problem = scan_problem(1, 2, 1_000_000, 2, absent="z reset")
    problem.tensors["A"] = -torch.tensor([[1e-3, 1.0], [0.01, 30.0]]).bfloat16().double()
    wrong = compare(selective_scan, selective_scan, problem, scan_sequences(), torch.float32,
                    delta_softplus=True, return_last_state=True)  # fmt: skip
    # the terms of these sums nearly cancel; how they are grouped depends on the threads
    assert wrong.pop("gradient of delta_bias", 0) < 5e-5
    assert wrong.pop("gradient of A", 0) < 2e-5
    assert not wrong


def test_the_parity_of_4096_bits():
    """A step that turns the state's sign where its bit is 1, and leaves it where it is 0."""
    torch.manual_seed(0)
    bits = torch.randint(0, 2, (4, 1, 4096)).float()
    u, ones = torch.zeros_like(bits), torch.ones(4, 1, 4096)
    one = torch.ones(4, 1, 1)
    A = torch.full((1, 1), -1e4)
    y = selective_scan(u, bits, A, ones, ones, initial_state=one, eig_range="pm1")
    assert torch.equal(y[:, 0], 1 - 2 * (bits[:, 0].cumsum(1) % 2))


def test_reset_separates_packed_sequences():
    torch.manual_seed(0)
    leaves = scan_problem(1, 5, 90, 3, absent="reset").leaves("cpu", {}, "rows")
    del leaves["initial_state"]
    reset = torch.zeros(1, 90, dtype=torch.bool)
    reset[0, 37] = True
    packed = selective_scan(**leaves, reset=reset)
    sequences = scan_sequences().split()
    for part in (slice(0, 37), slice(37, 90)):
        alone = {n: t[..., part] if n in sequences else t for n, t in leaves.items()}
        torch.testing.assert_close(packed[..., part], selective_scan(**alone))


@pytest.mark.parametrize("eig_range", EIG_RANGES)
@pytest.mark.parametrize("reverse", BOTH)
def test_state_continues_a_sequence(reverse, eig_range):
    torch.manual_seed(0)
    leaves = scan_problem(2, 5, 90, 3, absent="reset").leaves("cpu", {}, "rows")
    options = dict(return_last_state=True, reverse=reverse, eig_range=eig_range)
    whole, last = selective_scan(**leaves, **options)
    parts, sequences = {}, scan_sequences().split()
    for part in sorted([slice(0, 37), slice(37, 90)], key=lambda s: s.start, reverse=reverse):
        now = {n: t[..., part] if n in sequences else t for n, t in leaves.items()}
        parts[part.start], leaves["initial_state"] = selective_scan(**now, **options)
    torch.testing.assert_close(torch.cat([parts[0], parts[37]], dim=-1), whole)
    torch.testing.assert_close(leaves["initial_state"], last)


def test_three_dimensions_are_one_group():
    torch.manual_seed(0)
    leaves = scan_problem(2, 6, 20, 3).leaves("cpu", {}, "rows")
    expected = selective_scan(**leaves)
    assert torch.equal(selective_scan(**{**leaves, "B": leaves["B"][:, 0]}), expected)
    assert torch.equal(
        selective_scan(**{**leaves, "B": leaves["B"][:, 0], "C": leaves["C"][:, 0]}), expected
    )


def test_complex_rates():
    """In the reference only; variable B and C hold real and imaginary parts in turn."""
    torch.manual_seed(0)
    u, delta = torch.randn(2, 3, 9, dtype=torch.float64), torch.rand(2, 3, 9, dtype=torch.float64)
    A = torch.complex(-torch.rand(3, 2), torch.randn(3, 2)).to(torch.complex128)
    B = torch.randn(2, 2, 18, dtype=torch.float64)
    C = torch.randn(3, 2, dtype=torch.complex128)
    y, state = selective_scan(u, delta, A, B, C, return_last_state=True)
    h, pairs = torch.zeros(2, 3, 2, dtype=torch.complex128), torch.view_as_complex(
        B.unflatten(-1, (9, 2))
    )  # fmt: skip
    for t in range(9):
        d = delta[:, :, t, None]
        h = torch.exp(d * A) * h + d * u[:, :, t, None] * pairs[:, None, :, t]
        torch.testing.assert_close(y[..., t], 2 * (h * C).sum(-1).real)
    torch.testing.assert_close(state, h)


def test_gradcheck():
    torch.manual_seed(0)
    for eig_range, sizes in zip(
        EIG_RANGES, (dict(groups=2), dict(constant="BC", softplus=False)), strict=True
    ):
        leaves = scan_problem(2, 4, 7, 2, **sizes).leaves("cpu", {}, "rows")
        reset = leaves.pop("reset")
        names = list(leaves)

        options = dict(
            reset=reset, delta_softplus="constant" not in sizes, return_last_state=True,
            reverse=True, eig_range=eig_range,
        )  # fmt: skip

        def scan(*tensors, names=names, options=options):
            return selective_scan(**dict(zip(names, tensors, strict=True)), **options)

        assert torch.autograd.gradcheck(scan, tuple(leaves.values()), fast_mode=True)


def test_second_derivative_is_refused():
    leaves = scan_problem(1, 2, 3, 1).leaves("cpu", {}, "rows")
    (gradient,) = torch.autograd.grad(
        selective_scan(**leaves).sum(), leaves["u"], create_graph=True
    )
    with pytest.raises(ZooError, match="no second derivative"):
        gradient.sum().backward()


def float32_leaves(absent: str = "", **sizes) -> dict[str, Tensor]:
    torch.manual_seed(0)
    problem = scan_problem(**{**dict(batch=2, dim=4, length=9, state=2), **sizes}, absent=absent)
    return problem.leaves("cpu", dict.fromkeys(problem.tensors, torch.float32), "rows")


@pytest.mark.parametrize("absent", ["", NOTHING_OPTIONAL])
def test_opcheck(absent):
    t = float32_leaves(absent)
    names = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "reset"]
    torch.library.opcheck(
        torch.ops.zoo.selective_scan.default, (*map(t.get, names), True, False, True, 128)
    )


def scan_and_state(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return selective_scan(**inputs, delta_softplus=True, return_last_state=True, eig_range="pm1")


def test_compiles_as_one_graph():
    compiled = torch.compile(scan_and_state, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (9, 14):
        leaves = float32_leaves(length=length)
        found, expected = compiled(leaves), scan_and_state(leaves)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        wanted = [t for t in leaves.values() if t.requires_grad]
        gradients = [torch.autograd.grad(y.sum() + s.sum(), wanted) for y, s in (found, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_exports():
    class Scan(torch.nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return scan_and_state(inputs)

    leaves = {n: t.detach() for n, t in float32_leaves().items()}
    program = torch.export.export(Scan(), (leaves,))
    assert "zoo.selective_scan" in program.graph_module.code
    for a, b in zip(program.module()(leaves), scan_and_state(leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_brings_sequences_to_the_widest_dtype():
    leaves = {n: t.detach() for n, t in float32_leaves().items()}
    half = {n: t.bfloat16() if n in ("u", "B") else t for n, t in leaves.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(**half, delta_softplus=True)
    assert out.dtype == torch.float32
    rounded = {n: t.float() if n in ("u", "B") else t for n, t in half.items()}
    torch.testing.assert_close(out, selective_scan(**rounded, delta_softplus=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_delta_that_is_not_finite(cpu_variant, value):
    leaves = float32_leaves()
    delta = leaves["delta"].detach().clone()
    delta[1, 2, 5] = value
    with pytest.raises(RuntimeError, match=r"delta \(with delta_bias\) holds NaN or infinity"):
        selective_scan(**{**leaves, "delta": delta})


X = torch.randn(2, 4, 9)
A, P = -torch.rand(4, 3), torch.randn(2, 3, 9)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(u=X[0]), "u must be [batch, dim, length], got [4, 9]"),
        (dict(u=X[..., :0]), "at least 1, got u [2, 4, 0]"),
        (dict(delta=X[..., :8]), "delta must be [2, 4, 9]"),
        (dict(A=A[:3]), "A must be [dim, state] with dim = 4"),
        (dict(B=X[:, None]), "B must be [2, 1, 3, 9]"),
        (dict(B=P[:, None].expand(-1, 3, -1, -1)), "3 groups, which do not divide dim = 4"),
        (dict(B=P[0, 0]), "B must be [dim, state], [batch, state, length] or"),
        (dict(B=P[:, None].expand(-1, 2, -1, -1), C=P[:, None].expand(-1, 4, -1, -1)),
         "B has 2 groups and C has 4"),
        (dict(C=P[..., :8]), "C must be [2, 3, 9]"),
        (dict(D=X[0, :3, 0]), "D must be [4]"),
        (dict(z=X.mT), "z must be [2, 4, 9]"),
        (dict(delta_bias=X[0, :, :1]), "delta_bias must be [4]"),
        (dict(initial_state=A), "initial_state must be [2, 4, 3]"),
        (dict(reset=torch.zeros(2, 4, dtype=torch.bool)), "reset must be [2, 9]"),
        (dict(reset=torch.zeros(2, 9)), "reset must be bool, got torch.float32"),
        (dict(u=X.int()), "u must be float32, bfloat16, float16 or float64, got torch.int32"),
        (dict(z=X.bfloat16()), "z is torch.bfloat16 and u is torch.float32; cast them"),
        (dict(A=A.double()), "A must be torch.float32 (or torch.float32, as u), got torch.float64"),
        (dict(eig_range="11"), "eig_range is '11', expected one of 01, pm1"),
        (dict(delta=X.to("meta")), "delta is on meta and u on cpu; move them to one device"),
    ],
)  # fmt: skip
def test_wrong_arguments(change, words):
    with pytest.raises(ZooError) as caught:
        selective_scan(**{**dict(u=X, delta=X, A=A, B=P, C=P), **change})
    assert words in str(caught.value)


def test_error_is_small():
    """The largest deviation from float64, at the shape of a small model."""
    torch.manual_seed(0)
    problem = scan_problem(1, 64, 512, 16)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        kinds = {n: dtype if n in scan_sequences().split() else torch.float32
                 for n in problem.tensors}  # fmt: skip
        inputs = [problem.leaves("cpu", k, "rows") for k in (kinds, {})]
        found, exact = (selective_scan(**i, delta_softplus=True) for i in inputs)
        assert error(found, exact) < bound
