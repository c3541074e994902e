"""What a linear system remembers: its input of some steps ago, read out of its state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo.plots.proofs import Axes, Curve

STEPS, FITTED, DT = 6000, 4500, 0.01
DELAYS = tuple(range(0, 401, 50))
RECALL = Axes("What can be read out of the state", "delay, steps", "R2")


def slow_noise(seed: int, share: float = 0.1) -> Tensor:
    """Noise of the lowest ``share`` of the frequencies, of unit variance ``[steps]``, float64."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=STEPS))
    spectrum[int(share * len(spectrum)) :] = 0
    u = np.fft.irfft(spectrum, STEPS)
    return torch.from_numpy(u / u.std())


def states_of(A: Tensor, B: Tensor, u: Tensor) -> Tensor:
    """States ``[steps, N]`` of x' = A x + B u; A is a matrix ``[N, N]`` or a diagonal ``[N]``."""
    x, states = torch.zeros_like(B), []
    for now in u.to(B.dtype):
        x = (A @ x if A.dim() == 2 else A * x) + B * now
        states.append(x)
    return torch.stack(states)


def bilinear(A: Tensor, B: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """The discrete system of a continuous one with a dense matrix."""
    identity = torch.eye(len(A), dtype=A.dtype)
    implicit = identity - dt / 2 * A
    return torch.linalg.solve(implicit, identity + dt / 2 * A), torch.linalg.solve(implicit, dt * B)


def explained(states: Tensor, u: Tensor) -> dict[int, float]:
    """R2 of the input at each delay, read by ridge regression that is fitted before."""
    if states.is_complex():
        states = torch.cat([states.real, states.imag], dim=1)
    start = DELAYS[-1]
    fit, rest = states[start:FITTED], states[FITTED:]
    gram = fit.T @ fit
    gram = gram + 1e-8 * torch.eye(len(gram), dtype=gram.dtype)
    wanted = torch.stack([u.roll(delay) for delay in DELAYS], 1)
    weights = torch.linalg.solve(gram, fit.T @ wanted[start:FITTED])
    errors = (rest @ weights - wanted[FITTED:]).square().mean(0)
    r2 = 1 - errors / wanted[FITTED:].var(0)
    return dict(zip(DELAYS, r2.tolist(), strict=True))


def recalled(states: Tensor, u: Tensor) -> tuple[dict[str, float], Curve]:
    """R2 at delays 100 and 400, and the curve over all delays."""
    r2 = explained(states, u)
    values = {"r2_100": r2[100], "r2_400": r2[400]}
    return values, Curve(RECALL, list(r2), [max(value, 0.0) for value in r2.values()])


def random_system(seed: int, N: int) -> tuple[Tensor, Tensor]:
    """A Gaussian matrix with its spectrum moved to a largest real part of -1/2, and an input."""
    draws = np.random.default_rng(seed + 1)
    A = torch.from_numpy(draws.normal(size=(N, N)))
    A = A - (torch.linalg.eigvals(A).real.max() + 0.5) * torch.eye(N, dtype=A.dtype)
    return A, torch.from_numpy(draws.normal(size=N))
