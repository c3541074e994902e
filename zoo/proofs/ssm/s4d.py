"""S4D: where diagonal systems start, and what they become as they grow."""

from __future__ import annotations

import numpy as np
import torch

from zoo.layers.hippo import diagonal, nplr, transition
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.ssm._readout import DT, recalled, slow_noise, states_of

LIMIT = Axes("A diagonal system against HiPPO's", "order", "relative error")
ORDERS = (8, 16, 32, 64, 128)


class Memory(Measurement):
    """Reads the input of 100 and of 400 steps ago out of 32 complex modes.

    Measures the share of the variance that is explained, ``r2_100`` and ``r2_400``.

    Args:
        init: of :func:`zoo.layers.hippo.diagonal`.
    """

    def __init__(self, init: str) -> None:
        self.init = init

    def measure(self, seed: int) -> Measured:
        """Drive it with slow noise."""
        u, ssm = slow_noise(seed), diagonal(self.init, 64)
        A = torch.exp(DT * ssm.A[0])
        values, curve = recalled(states_of(A, (A - 1) / ssm.A[0] * ssm.B[0], u), u)
        return Measured(values, [curve])


class Limit(Measurement):
    """The normal part of HiPPO-LegS alone, against the whole, for a smooth input over [0, 4].

    Measures ``error_N``, of the first four states in HiPPO's coordinates, relative to the largest,
    for growing orders N.

    Args:
        scale: of the input matrix: 1/2 in the theorem.
        steps: of the integration.
    """

    seeded = False

    def __init__(self, scale: float, steps: int = 4000) -> None:
        self.scale, self.steps = scale, steps

    def measure(self, seed: int) -> Measured:
        """Integrate both exactly for a piecewise constant input."""
        t = np.linspace(0, 4, self.steps, endpoint=False)
        u = np.exp(-((t - 1) ** 2) / 0.1) + 0.5 * np.sin(3 * t)
        errors = {N: self._error(N, u, 4 / self.steps) for N in ORDERS}
        curve = Curve(LIMIT, ORDERS, list(errors.values()))
        return Measured({f"error_{N}": error for N, error in errors.items()}, [curve])

    def _error(self, N: int, u: np.ndarray, dt: float) -> float:
        A, B = transition("legs", N)
        # exp of the matrix and its integral at once
        grown = torch.zeros(N + 1, N + 1, dtype=torch.float64)
        grown[:N, :N], grown[:N, N] = torch.from_numpy(A * dt), torch.from_numpy(B * dt)
        step = torch.matrix_exp(grown)
        form = nplr("legs", N, B_clip=None)
        a = np.exp(dt * form.w)
        b = (a - 1) / form.w * form.B * self.scale
        x, y = torch.zeros(N, dtype=torch.float64), np.zeros(N // 2, dtype=complex)
        expected, found = [], []
        for now in u:
            x = step[:N, :N] @ x + step[:N, N] * now
            y = a * y + b * now
            expected.append(x[:4].numpy())
            found.append(2 * (form.V[:4] @ y).real)
        worst = np.abs(np.array(found) - np.array(expected)).max()
        return float(worst / np.abs(expected).max())
