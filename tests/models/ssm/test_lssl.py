"""LSSL's state matrices against HiPPO's, and its steps."""

import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.hippo import transition
from zoo.models.ssm._transitions import make_transition
from zoo.models.ssm.lssl import LSSLLayer


@pytest.mark.parametrize(("measure", "factor"), [("legs", 1), ("legt", 2), ("lagt", 1)])
@pytest.mark.parametrize("learn", [0, 1, 2])
def test_structured_matrices_are_hippos(measure, factor, learn):
    A, B = make_transition(measure, 6, learn, 3, 1e-4).continuous()
    dense, into = (factor * torch.from_numpy(m).float() for m in transition(measure, 6))
    expected = dense.expand(3, -1, -1) if learn == 2 else dense
    torch.testing.assert_close(A, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(B, into.expand_as(B), rtol=1e-4, atol=1e-5)


def test_toeplitz_matrices_are_hippos():
    for args in ({"alpha": 0.3, "beta": 0.5}, {}):
        A, B = make_transition("glagt", 5, 0, 3, 1e-4, **args).continuous()
        dense, into = (torch.from_numpy(m).float() for m in transition("glagt", 5, **args))
        torch.testing.assert_close(A, dense, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(B, into, rtol=1e-4, atol=1e-5)
    A, _ = make_transition("toep", 5, 1, 3, 1e-4).continuous()
    torch.testing.assert_close(A, torch.from_numpy(transition("lagt", 5)[0]).float())


def test_chebyshev_and_jacobi_matrices_by_hand():
    A, B = make_transition("jac", 3, 0, 1, 1e-4).continuous()
    p = (2 * torch.arange(3.0) + 2).sqrt()
    torch.testing.assert_close(A, -p[:, None] * torch.ones(3, 3).tril() * p)
    torch.testing.assert_close(B, 2 * p)
    A, B = make_transition("cheb", 4, 1, 1, 1e-4).continuous()
    T = torch.linalg.inv(-A)
    expected = torch.diag(torch.full((3,), 0.5), 1) - torch.diag(torch.full((3,), 0.5), -1)
    torch.testing.assert_close(T, expected, rtol=1e-4, atol=1e-5)
    assert make_transition("identity", 3, 0, 1, 1e-4).continuous()[0].trace() == 3
    torch.manual_seed(0)
    noisy = make_transition("legt", 50, 0, 1, 1e-4, noise=0.01).d
    assert 0.005 < noisy[1:-1].std() < 0.02


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_bilinear_rule_of_any_weight(alpha):
    made = make_transition("legs", 4, 0, 2, 1e-4)
    A, B = made.continuous()
    dt = torch.tensor([0.1, 0.3])
    A_bar, B_bar = made.discrete(dt, alpha)
    for h in range(2):
        implicit = torch.eye(4) - alpha * dt[h] * A
        torch.testing.assert_close(implicit @ A_bar[h], torch.eye(4) + (1 - alpha) * dt[h] * A)
        torch.testing.assert_close(implicit @ B_bar[h], dt[h] * B)


@pytest.mark.parametrize("settings", [{}, dict(learn=1, channels=3, bias=True), dict(learn=2)])
def test_steps_are_the_convolution(settings):
    torch.manual_seed(0)
    layer, x = LSSLLayer(3, 4, **settings).double(), torch.randn(2, 12, 3, dtype=torch.float64)
    with torch.no_grad():
        state = layer.allocate_state(2)
        steps = torch.cat([layer(part, state=state) for part in x.split([1, 5, 6], 1)], 1)
        torch.testing.assert_close(steps, layer(x))
        slow = layer.allocate_state(2, rate=2.0)
        torch.testing.assert_close(layer(x, state=slow), layer(x, rate=2.0))


def test_what_is_trained_has_rates_of_its_own():
    layer = LSSLLayer(3, 4, learn=1, lr=1e-5)
    assert layer.learning_rates() == {"log_dt": 1e-3}
    assert set(layer.transition.learning_rates().values()) == {1e-5}
    fixed = LSSLLayer(3, 4)
    assert fixed.learning_rates() == {} and not list(fixed.transition.parameters())
    assert {n for n, _ in fixed.named_parameters()} == {
        "C", "D", "output_linear.weight", "output_linear.bias"
    }  # fmt: skip


def test_initial_values():
    torch.manual_seed(0)
    layer = LSSLLayer(4, 300, init="uniform", dt={"min": 0.01, "max": 10, "init": "uniform"})
    assert layer.C.min() >= 0 and layer.C.max() <= 1.732 and layer.C.std() > 0.45
    torch.testing.assert_close(layer.log_dt.exp(), torch.tensor([0.01, 0.1, 1, 10]))
    assert (LSSLLayer(3, 4, init="constant").D == 1).all()
    log_dt = LSSLLayer(2000, 2).log_dt.exp().log10()
    assert -3.01 < log_dt.min() < -2.95 and -1.05 < log_dt.max() < -0.99


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(measure="foo"), "measure is 'foo'"),
        (dict(learn=4), "learn is 0, 1, 2 or 3"),
        (dict(dt={"rate": 2}), "dt has min"),
        (dict(init="zeros"), "not 'zeros'"),
        (dict(ff=False, channels=2), "ff: false"),
        (dict(measure="glagt", measure_args={"beta": 0.0}), "beta above 0"),
    ],
)
def test_what_it_refuses(settings, says):
    with pytest.raises(ZooError, match=says):
        LSSLLayer(4, 4, **settings)
    with pytest.raises(ZooError, match="longer than l_max 8"):
        LSSLLayer(4, 4, l_max=8)(torch.zeros(1, 9, 4))
    with pytest.raises(ZooError, match="not 'linear'"):
        LSSLLayer(4, 4).allocate_state(1, "linear")
