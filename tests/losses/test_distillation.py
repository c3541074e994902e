"""Distillation losses against their definitions, and exact transport."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr, softmax

from zoo.losses.distillation import (
    annealed_temperature,
    divergence,
    sinkhorn_distance,
    sinkhorn_plan,
    soft_cross_entropy,
)


@pytest.fixture
def logits():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 7)) * 2)


def test_soft_cross_entropy(logits):
    s, t = logits
    p, q = softmax(s.numpy() / 3, -1), softmax(t.numpy() / 3, -1)
    expected = -(q * np.log(p)).sum(-1).mean()
    assert soft_cross_entropy(s, t, 3.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "js", "tvd"])
def test_divergences(logits, kind):
    s, t = logits
    p, q = softmax(s.numpy() / 2, -1), softmax(t.numpy() / 2, -1)
    m = (p + q) / 2
    expected = {
        "kl": rel_entr(q, p).sum(-1),
        "reverse_kl": rel_entr(p, q).sum(-1),
        "js": (rel_entr(p, m) + rel_entr(q, m)).sum(-1) / 2,
        "tvd": abs(p - q).sum(-1) / 2,
    }[kind].mean()
    assert divergence(s, t, kind, 2.0).item() == pytest.approx(expected, rel=1e-12)
    assert divergence(s, s, kind).item() == pytest.approx(0, abs=1e-12)
    far = torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]])
    if kind in ("js", "tvd"):
        bound = math.log(2) if kind == "js" else 1
        assert divergence(*far, kind).item() == pytest.approx(bound)


def test_temperature_falls_to_one():
    assert [annealed_temperature(3, epoch, 5) for epoch in range(6)] == [3, 2.5, 2, 1.5, 1, 1]
    assert annealed_temperature(4, 0, 1) == 4


def test_plan_is_sinkhorns():
    cost = torch.from_numpy(np.random.default_rng(1).random((2, 4, 4)))
    kernel = np.exp(-cost.numpy() / 0.3)
    for _ in range(3):
        kernel = kernel / kernel.sum(2, keepdims=True)
        kernel = kernel / kernel.sum(1, keepdims=True)
    torch.testing.assert_close(sinkhorn_plan(cost, 0.3, 3), torch.from_numpy(kernel))


def test_distance_is_what_the_plan_moves(logits):
    s, t = logits
    p, q = softmax(s.numpy() / 2, -1), softmax(t.numpy() / 2, -1)
    cost = abs(p[:, None] - q[None]).sum(-1)
    plan = sinkhorn_plan(torch.from_numpy(cost), 0.1, 20).numpy()
    assert sinkhorn_distance(s, t).item() == pytest.approx((plan * cost).sum(), rel=1e-10)
    mean = sinkhorn_distance(s, t, reduction="mean")
    assert mean.item() == pytest.approx((plan * cost).sum() / 5, rel=1e-10)
    exact = cost[linear_sum_assignment(cost)].sum()
    near = sinkhorn_distance(s, t, eps=0.005, iterations=2000).item()
    assert near == pytest.approx(exact, rel=0.01) and sinkhorn_distance(s, t).item() > exact
    shuffled = sinkhorn_distance(s[[3, 1, 4, 0, 2]], t)
    assert shuffled.item() == pytest.approx(sinkhorn_distance(s, t).item(), rel=1e-6)


def test_gradient_goes_through_plan_and_cost(logits):
    s, t = (x[:3].clone().requires_grad_() for x in logits)
    assert torch.autograd.gradcheck(
        lambda a, b: sinkhorn_distance(a, b, eps=0.5, iterations=3), (s, t)
    )
    half = sinkhorn_distance(s.half(), t.half())  # exp(-W / 0.01) would be zero there
    assert (
        torch.isfinite(sinkhorn_distance(s.half(), t.half(), eps=0.01))
        and half.dtype == torch.float32
    )
