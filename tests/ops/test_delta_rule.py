from __future__ import annotations

import functools

import pytest
import torch

from tests.ops.problems import (
    DELTA_SIGNALS,
    LAYOUTS,
    TOLERANCE,
    Problem,
    compare,
    delta_problem,
)
from zoo.errors import ZooError
from zoo.ops import (
    delta_rule,
    delta_rule_reference,
    linear_attention,
    linear_attention_reference,
    ssd,
)
from zoo.ops._delta_chunked import delta_chunked

PROBLEMS = {
    "one step": dict(batch=1, length=1, heads=1, state=1, channels=1),
    "part of a vector": dict(batch=2, length=37, heads=3, state=5, channels=3),
    "spans": dict(batch=1, length=70, heads=2, state=17, channels=24),
    "blocks of columns": dict(batch=1, length=33, heads=1, state=6, channels=150),
    "whole vectors": dict(batch=1, length=64, heads=2, state=16, channels=64),
    "no decay": dict(batch=1, length=40, heads=2, state=9, channels=20, absent="decay"),
    "nothing optional": dict(batch=1, length=34, heads=2, state=7, channels=9,
                             absent="decay initial_state"),
    "no batch": dict(batch=0, length=3, heads=2, state=2, channels=2),
}  # fmt: skip


@functools.cache
def problem_of(name: str, beta: bool = True) -> Problem:
    torch.manual_seed(0)
    options = PROBLEMS[name]
    absent = options.get("absent", "") + ("" if beta else " beta")
    return delta_problem(**(options | {"absent": absent}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(cpu_variant, dtype, layout):
    """Output, last state and all gradients against float64."""
    for name in PROBLEMS:
        pairs = ((delta_rule, delta_rule_reference), (linear_attention, linear_attention_reference))
        for beta, (ours, reference) in zip((True, False), pairs, strict=True):
            wrong = compare(ours, reference, problem_of(name, beta), DELTA_SIGNALS, dtype, layout,
                            return_final_state=True)  # fmt: skip
            assert not wrong, (name, beta)


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("name", ["one step", "spans", "nothing optional"])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_pytorch_alone_gives_the_same(name, chunk, beta):
    """What answers where no kernel is built."""
    problem = problem_of(name, beta)
    given = dict.fromkeys(("beta", "decay", "initial_state")) | problem.tensors
    found, state = delta_chunked(**given, chunk_size=chunk)
    reference = delta_rule_reference if beta else linear_attention_reference
    (expected, last), _ = problem.expected(reference, dict(scale=1.0, return_final_state=True))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("only", [0, 1], ids=["output", "last state"])
def test_gradient_of_one_result(only):
    def one(function):
        return lambda **inputs: function(**inputs, return_final_state=True)[only]

    assert not compare(one(delta_rule), one(delta_rule_reference), problem_of("spans"),
                       DELTA_SIGNALS, torch.float32)  # fmt: skip


def test_same_result_every_time_on_any_number_of_threads():
    before = torch.get_num_threads()
    leaves = problem_of("part of a vector").leaves("cpu", {}, "rows")
    results = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        results.append(torch.autograd.grad(delta_rule(**leaves).sum(), list(leaves.values())))
    torch.set_num_threads(before)
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_passing_the_state_on_continues_the_sequence():
    given = dict(problem_of("spans").tensors)
    state = given.pop("initial_state")
    whole, last = delta_rule(**given, initial_state=state, return_final_state=True)
    parts = []
    for part in (slice(0, 33), slice(33, 34), slice(34, None)):
        cut = {name: t[:, part] for name, t in given.items()}
        out, state = delta_rule(**cut, initial_state=state, return_final_state=True)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_reflections_keep_what_they_turn(dtype, tolerance):
    """With beta = 2 and keys of length 1 a step is a reflection: 4,096 of them lose no length."""
    torch.manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 4096, 1, 8, dtype=dtype), dim=-1)
    start = torch.eye(8, dtype=dtype)[None, None]
    nothing = torch.zeros(1, 4096, 1, 8, dtype=dtype)
    beta = torch.full((1, 4096, 1), 2, dtype=dtype)
    _, state = delta_rule(k, k, nothing, beta, initial_state=start, return_final_state=True)
    assert (state[0, 0] @ state[0, 0].T - torch.eye(8, dtype=dtype)).abs().max() < tolerance


def test_linear_attention_with_one_decay_is_a_scan_of_mamba2():
    given = {n: t for n, t in problem_of("spans", False).tensors.items() if n in "qkv"}
    q, k, v = (given[n] for n in "qkv")
    rate = torch.tensor([-0.3, -0.01]).double()
    ones = torch.ones(q.shape[:3]).double()
    expected = ssd(v, ones, rate, k, q, return_final_states=False)
    torch.testing.assert_close(linear_attention(q, k, v, ones * rate.exp()), expected)


def test_normalised_rows_are_means():
    torch.manual_seed(0)
    q, k = (torch.rand(2, 21, 3, 6, dtype=torch.double) for _ in "qk")
    v = torch.randn(2, 21, 3, 4, dtype=torch.double)
    weights = torch.einsum("bthn,bjhn->bhtj", q, k).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum("bhtj,bjhp->bthp", weights, v)
    out, state = linear_attention(q, k, v, normalize=True, return_final_state=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(state[..., -1], k.sum(1))
    ones = linear_attention(q, k, torch.ones_like(v), normalize=True)
    torch.testing.assert_close(ones, torch.ones_like(v))
    reference = linear_attention_reference(q, k, v, normalize=True)
    torch.testing.assert_close(out, reference)
    first, kept = linear_attention(q[:, :9], k[:, :9], v[:, :9], normalize=True,
                                   return_final_state=True)  # fmt: skip
    rest = linear_attention(q[:, 9:], k[:, 9:], v[:, 9:], normalize=True, initial_state=kept)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), expected)


def test_gradcheck():
    torch.manual_seed(0)
    leaves = delta_problem(1, 5, 2, 3, 4).leaves("cpu", {}, "rows")

    def function(*values):
        return delta_rule(**dict(zip(leaves, values, strict=True)), return_final_state=True)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)
    leaves.pop("beta")

    def attention(*values):
        return linear_attention(**dict(zip(leaves, values, strict=True)), return_final_state=True)

    assert torch.autograd.gradcheck(attention, tuple(leaves.values()), fast_mode=True)


def test_opcheck_and_compile():
    torch.manual_seed(0)
    leaves = delta_problem(1, 40, 2, 3, 4).leaves("cpu", dict.fromkeys(
        ("q", "k", "v", "beta", "decay", "initial_state"), torch.float32), "rows")  # fmt: skip
    torch.library.opcheck(torch.ops.zoo.delta_rule.default, (*leaves.values(), 32))
    compiled = torch.compile(delta_rule, fullgraph=True, backend="aot_eager")
    found, expected = compiled(**leaves), delta_rule(**leaves)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        *(torch.autograd.grad(o.square().sum(), list(leaves.values())) for o in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_has_no_second_derivative():
    leaves = delta_problem(1, 4, 1, 2, 2).leaves("cpu", {}, "rows")
    out = delta_rule(**leaves)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves["v"], create_graph=True)
    with pytest.raises(ZooError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(k=torch.zeros(1, 4, 2)), "takes q, k [B, L, H, N] and v [B, L, H, P]"),
        (dict(q=torch.zeros(1, 4, 2, 5)), "q has shape (1, 4, 2, 5), expected (1, 4, 2, 3)"),
        (dict(beta=torch.zeros(1, 4)), "beta has shape (1, 4)"),
        (dict(decay=torch.zeros(1, 4, 2, 1)), "decay has shape"),
        (dict(initial_state=torch.zeros(1, 2, 5, 3)), "expected (1, 2, 3, 5)"),
        (dict(v=torch.zeros(1, 4, 2, 5, device="meta")), "v is on meta and q on cpu"),
        (dict(beta=torch.zeros(1, 4, 2, dtype=torch.int64)), "beta must be float32"),
        (dict(beta=None), "beta is missing"),
    ],
)
def test_wrong_arguments(change, words):
    q, v = torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, 5)
    with pytest.raises(ZooError) as caught:
        delta_rule(**({"q": q, "k": q, "v": v, "beta": q[..., 0]} | change))
    assert words in str(caught.value)


@pytest.mark.parametrize("v", [torch.tensor(1.0), torch.ones(1, 4, 2, 5, dtype=torch.int64)])
def test_the_normalised_form_refuses_what_the_other_does(v):
    q = torch.zeros(1, 4, 2, 3)
    for normalize in (False, True):
        for function in (linear_attention, linear_attention_reference):
            with pytest.raises(ZooError, match="v"):
                function(q, q, v, normalize=normalize)
