from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.grids import BOTH
from tests.ops.problems import TOLERANCE, error, exact, state_dtype
from zoo.errors import ZooError
from zoo.ops import selective_scan, selective_state_update, selective_state_update_reference

#: x, state
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.float64, torch.float64),
]
#: channels (or heads and channels), groups, states
SIZES = [((1,), None, 1), ((5,), 1, 3), ((36,), 2, 16), ((20,), 4, 19), ((17,), None, 64),
         ((1, 1), 1, 1), ((4, 3), 2, 5), ((2, 33), 1, 16), ((4, 16), 4, 128)]  # fmt: skip


def make(channels, groups, states, batch=2, optional=True, shared=False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    projection = (batch, states) if groups is None else (batch, groups, states)
    given = {
        "state": exact(batch, *channels, states),
        "x": exact(batch, *channels),
        "dt": exact(batch, *channels),
        "A": -exact(*channels, states).abs() - 0.125,
        "B": exact(*projection),
        "C": exact(*projection),
    }
    if optional:
        given |= {"D": exact(*channels), "z": exact(batch, *channels), "dt_bias": exact(*channels)}
    if shared:  # within a head, as Mamba-2 has it
        given["A"] = given["A"][:, :1, :1].expand(-1, *channels[1:], states)
        for name in {"D", "dt_bias"} & given.keys():
            given[name] = given[name][:, :1].expand(-1, *channels[1:])
        given["dt"] = given["dt"][:, :, :1].expand(-1, -1, *channels[1:])
    return given


LAYOUTS = {
    "contiguous": lambda t: t,
    "last dimension first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "every second": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}


def check(
    given: dict[str, Tensor], dtype, kept, layout="contiguous", softplus=True, eig_range="01"
) -> None:
    parameter = state_dtype(dtype)
    kinds = {"state": kept, "A": parameter, "D": parameter, "dt_bias": parameter}

    def arranged(t: Tensor) -> Tensor:
        return t if 0 in t.stride() else LAYOUTS[layout](t)

    if not softplus:
        given["dt"] = given["dt"].abs()
        given.pop("dt_bias", None)
    ours = {n: arranged(t.to(kinds.get(n, dtype))) for n, t in given.items()}
    expected = {n: t.clone() if n == "state" else t for n, t in given.items()}
    options = dict(dt_softplus=softplus, eig_range=eig_range)
    out = selective_state_update(**ours, **options)
    reference = selective_state_update_reference(**expected, **options)
    assert out.dtype == dtype and out.shape == given["x"].shape
    assert error(out, reference) < TOLERANCE[dtype]
    assert error(ours["state"], expected["state"]) < TOLERANCE[kept]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, kept", DTYPES, ids=str)
def test_equals_reference(cpu_variant, dtype, kept, layout):
    for sizes, optional, softplus in itertools.product(SIZES, BOTH, BOTH):
        for eig_range in ("01", "pm1"):
            given = make(*sizes, optional=optional)
            check(given, dtype, kept, layout, softplus, eig_range)


@pytest.mark.parametrize("dtype, kept", DTYPES[:5], ids=str)
def test_shared_within_a_head(cpu_variant, dtype, kept):
    for sizes in SIZES[5:]:
        check(make(*sizes, shared=True), dtype, kept)


def test_many_channels_and_no_batch(cpu_variant):
    check(make((300,), None, 100), torch.float32, torch.float32)
    check(make((3,), None, 2, batch=0), torch.float32, torch.float32)


def test_a_slice_of_a_pool():
    given = {n: t.float() for n, t in make((5,), None, 4, batch=3).items()}
    pool = torch.randn(3, 10, 4)
    before = pool.clone()
    expected = pool[:, ::2].clone()
    out = selective_state_update(**{**given, "state": pool[:, ::2]})
    assert torch.equal(out, selective_state_update(**{**given, "state": expected}))
    assert torch.equal(pool[:, ::2], expected) and torch.equal(pool[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize("eig_range", ["01", "pm1"])
def test_steps_equal_a_scan(eig_range):
    torch.manual_seed(0)
    u, delta, z = (torch.randn(2, 6, 9) for _ in range(3))
    A, B, C = -torch.rand(6, 4), torch.randn(2, 3, 4, 9), torch.randn(2, 3, 4, 9)
    D, bias = torch.randn(6), torch.randn(6)
    whole, last = selective_scan(u, delta, A, B, C, D, z, bias, True, True, eig_range=eig_range)
    state = torch.zeros(2, 6, 4)
    steps = [
        selective_state_update(
            state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, True,
            eig_range=eig_range,
        )
        for t in range(9)
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(steps, -1), whole)
    torch.testing.assert_close(state, last)


def test_gradients_are_those_of_the_reference():
    given = make((4, 3), 2, 5)
    state = given.pop("state")
    names = list(given)
    for t in given.values():
        t.requires_grad_()

    def step(*tensors):
        kept = state.clone()
        return selective_state_update(kept, **dict(zip(names, tensors, strict=True))), kept

    assert torch.autograd.gradcheck(step, tuple(given.values()), fast_mode=True)


def test_opcheck_and_compile():
    given = {n: t.float() for n, t in make((4, 3), 2, 5).items()}
    torch.library.opcheck(
        torch.ops.zoo.selective_state_update.default, (*given.values(), True, True)
    )
    compiled = torch.compile(selective_state_update, fullgraph=True, backend="aot_eager")
    ours, expected = given["state"].clone(), given.pop("state")
    torch.testing.assert_close(compiled(ours, **given), selective_state_update(expected, **given))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(state=torch.zeros(2, 4)), "state must be [batch, dim, state] or"),
        (dict(x=torch.zeros(2, 3)), "x must be [2, 4, 3] to fit the state, got [2, 3]"),
        (dict(A=torch.zeros(4, 3)), "A must be [4, 3, 5]"),
        (dict(B=torch.zeros(2, 3, 5)), "B has 3 groups, which do not divide 4"),
        (dict(B=torch.zeros(2, 5), C=torch.zeros(2, 4)), "C must be [2, 5]"),
        (dict(C=torch.zeros(2, 4, 5)), "B has 2 groups and C has 4"),
        (dict(D=torch.zeros(4)), "D must be [4, 3]"),
        (dict(x=torch.zeros(2, 4, 3).double()), "or all of float64"),
        (dict(dt=torch.zeros(2, 4, 3, device="meta")), "dt is on meta and x on cpu"),
    ],
)
def test_wrong_arguments(change, words):
    given = {n: t.float() for n, t in make((4, 3), 2, 5).items()}
    with pytest.raises(ZooError) as caught:
        selective_state_update(**{**given, **change})
    assert words in str(caught.value)
