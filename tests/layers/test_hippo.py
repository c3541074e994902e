"""HiPPO matrices from their definitions, and the forms that models start from."""

import math

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.hippo import (
    MEASURES,
    diagonal,
    initial_ssm,
    nplr,
    perturb_then_diagonalise,
    rank_correction,
    transition,
)

WITH_FORM = [measure for measure, rank in MEASURES.items() if rank is not None]


def test_legs_by_its_cases():
    A, B = transition("legs", 5)
    for n in range(5):
        assert B[n] == pytest.approx(math.sqrt(2 * n + 1))
        for k in range(5):
            below = -math.sqrt((2 * n + 1) * (2 * k + 1))
            assert A[n, k] == pytest.approx(below if n > k else -(n + 1) if n == k else 0)


def test_legt_by_its_cases_and_lmu_in_other_units():
    A, B = transition("legt", 6)
    for n in range(6):
        for k in range(6):
            sign = (-1) ** (n - k) if n < k else 1
            assert A[n, k] == pytest.approx(-sign * math.sqrt((2 * n + 1) * (2 * k + 1)) / 2)
    # LMU's coefficients count back in time, and are not normalised
    scale = np.diag((-1.0) ** np.arange(6) * np.sqrt(2 * np.arange(6) + 1))
    lmu_A, lmu_B = transition("lmu", 6)
    np.testing.assert_allclose(scale @ (2 * A) @ np.linalg.inv(scale), lmu_A, atol=1e-12)
    np.testing.assert_allclose(scale @ (2 * B), lmu_B)


def test_a_laguerre_state_holds_the_inputs_projection():
    """x_n is the integral of u against the Laguerre function L_n of the time passed."""
    A, B = transition("lagt", 4)
    t, dt = np.linspace(0, 40, 40001, retstep=True)
    u = np.sin(t) * np.exp(-0.1 * t)
    step = np.linalg.solve(np.eye(4) - dt / 2 * A, np.eye(4) + dt / 2 * A)
    into = np.linalg.solve(np.eye(4) - dt / 2 * A, dt * B)
    x = np.zeros(4)
    for value in u[1:]:
        x = step @ x + into * value
    past = t[-1] - t
    for n in range(4):
        laguerre = np.polynomial.laguerre.lagval(past, np.eye(4)[n])
        expected = np.trapezoid(u * laguerre * np.exp(-past / 2), t)
        assert x[n] == pytest.approx(expected, abs=2e-3)


def test_generalised_laguerre_with_alpha_0_is_laguerre_tilted():
    A, B = transition("glagt", 4, alpha=0.0, beta=0.5)
    np.testing.assert_allclose(A, -0.75 * np.eye(4) - np.tril(np.ones((4, 4)), -1))
    np.testing.assert_allclose(B, np.sqrt(0.5))


@pytest.mark.parametrize("measure", WITH_FORM)
def test_normal_plus_low_rank_gives_the_matrix_back(measure):
    A, B = transition(measure, 10)
    form = nplr(measure, 10, rank=2, B_clip=None)
    both = lambda x: np.concatenate([x, x.conj()], axis=-1)  # noqa: E731
    w, P, V = both(form.w), both(form.P), both(form.V)
    np.testing.assert_allclose(V @ (np.diag(w) - P.T @ P.conj()) @ V.conj().T, A, atol=1e-9)
    np.testing.assert_allclose(V @ both(form.B), B, atol=1e-9)
    assert (form.w.imag <= 1e-9).all()


def test_input_is_clipped_where_asked():
    assert abs(nplr("legs", 64, B_clip=None).B.imag).max() > 2
    assert abs(nplr("legs", 64).B.imag).max() == 2
    np.testing.assert_array_equal(nplr("legs", 64).B.real, nplr("legs", 64, B_clip=None).B.real)


@pytest.mark.parametrize(
    ("name", "imag"),
    [
        ("lin", lambda n: math.pi * n),
        ("inv", lambda n: 16 / math.pi * (16 / (2 * n + 1) - 1)),
        ("inv2", lambda n: 16 / math.pi * (16 / (n + 1) - 1)),
        ("quad", lambda n: (1 + 2 * n) ** 2 / math.pi),
    ],
)
def test_diagonal_models_by_their_formulas(name, imag):
    ssm = diagonal(name, 16, copies=3)
    expected = torch.tensor([complex(-0.5, -imag(n)) for n in range(8)], dtype=torch.complex128)
    torch.testing.assert_close(ssm.A, expected.expand(3, -1))
    assert (ssm.B == 1).all()
    assert (ssm.P == 0).all()


def test_diagonal_models_from_legs_real_and_noise():
    torch.testing.assert_close(diagonal("legs", 8).A[0], torch.from_numpy(nplr("legs", 8).w))
    torch.testing.assert_close(diagonal("legs", 8).B[0], torch.from_numpy(nplr("legs", 8).B))
    assert diagonal("real", 8).A[0].tolist() == [-1, -2, -3, -4]
    torch.manual_seed(0)
    A = diagonal("lin", 400, real_random=True, imag_random=True, real_scale=2, imag_scale=3).A[0]
    assert A.real.min() > -2 and A.real.max() < 0 and A.real.std() > 0.4
    assert A.imag.min() > -3 * math.pi * 200 and A.imag.max() < 0 and A.imag.std() > 400
    assert (diagonal("rand", 8).A.imag < 0).all()
    A = diagonal("real", 200, real_random=True).A[0]  # as far down as the ladder
    assert -100 < A.real.min() < -80 and -20 < A.real.max() < 0


def test_inputs_of_diagonal_models():
    assert diagonal("lin", 8, B_init="alternating", B_scale=3).B[0].tolist() == [3, -3, 3, -3]
    turn = torch.exp(torch.tensor(2j * math.pi / 8) * torch.arange(4)).to(torch.complex128)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(diagonal("lin", 8, B_init="unit-ccw").B[0], turn, **close)
    torch.testing.assert_close(diagonal("lin", 8, B_init="unit-cw").B[0], turn.conj(), **close)
    assert diagonal("lin", 2000, B_init="random").B.abs().square().mean() == pytest.approx(1, 0.2)
    ssm = diagonal("inv", 16, normalize=True)
    assert 2 * (ssm.B / ssm.A).abs().square().sum() == pytest.approx(1)


def test_combinations_share_the_copies_out():
    ssm = initial_ssm("diag", 8, rank=1, copies=4)
    torch.testing.assert_close(ssm.A[1], diagonal("inv", 8).A[0])
    torch.testing.assert_close(ssm.A[2], diagonal("lin", 8).A[0])
    ssm = initial_ssm(["legs", "diag-legs"], 8, rank=2, copies=2)
    assert ssm.P.shape == (2, 2, 4) and ssm.V.shape == (2, 8, 4)
    torch.testing.assert_close(ssm.A[0], ssm.A[1])
    assert (ssm.P[0, 0] != 0).all() and (ssm.P[:, 1] == 0).all()
    assert (initial_ssm("dplr-lin", 8, rank=1, copies=1).P != 0).all()


def test_a_perturbed_matrix_is_diagonalised():
    A, B = transition("legs", 16)
    E = 0.1 * np.random.default_rng(0).standard_normal((16, 16))
    w, V, into = perturb_then_diagonalise("legs", 16, E)
    np.testing.assert_allclose(V @ np.diag(w) @ np.linalg.inv(V), A + E, atol=1e-8)
    np.testing.assert_allclose(V @ into, B, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: transition("cheb", 4), "not 'cheb'"),
        (lambda: transition("fout", 5), "even order"),
        (lambda: nplr("legs", 5), "even size, got 5"),
        (lambda: nplr("legt", 4, rank=1), "it takes rank 2"),
        (lambda: rank_correction("lmu", 4), "no such form"),
        (lambda: diagonal("cube", 4), "not 'cube'"),
        (lambda: diagonal("lin", 3), "even size, got 3"),
        (lambda: diagonal("lin", 4, B_init="loud"), "not 'loud'"),
        (lambda: initial_ssm("hippo", 4, 1, copies=3), "3 copies"),
        (lambda: perturb_then_diagonalise("legs", 4, np.zeros((3, 3))), r"\[4, 4\]"),
    ],
)
def test_what_it_refuses(call, says):
    with pytest.raises(ZooError, match=says):
        call()
