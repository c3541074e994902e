"""PTD: the transfer function of HiPPO's system in three bases, and what one frequency does."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.layers.hippo import nplr, transition
from zoo.models.ssm._ptd_basis import diagonalised, optimised_perturbation, random_perturbation
from zoo.ops import diagonal_scan
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.ssm._readout import slow_noise

N = 32
#: Largest frequency, and the points up to it.
HIGHEST, POINTS = 400.0, 8001
#: Of the authors' noise: that of the fastest mode of the normal part.
FREQUENCY, AMPLITUDE, STEPS = 325.4, 0.1, 2000
GAIN = Axes("Transfer function, one readout", "frequency, rad/s", "magnitude", log="y")
OUTPUT = Axes("Output of a layer, one frequency added to the input", "step", "output")


class Modes(NamedTuple):
    """A system in its modes: eigenvalues ``[P]``, input ``[P]``, and what turns real readouts
    ``[R, N]`` into those of the modes ``[N, P]``; the output is the real part."""

    Lambda: Tensor
    B: Tensor
    V: Tensor
    condition: float


@cache
def modes_of(basis: str, seed: int) -> Modes:
    """HiPPO-LegS of order 32 as "normal" (S4D: its normal part with half of its input),
    "optimised" (plus the E that models start with) or "random" (plus a Gaussian E a thousandth of
    its size)."""
    if basis == "normal":
        form = nplr("legs", N, B_clip=None)
        # one of each conjugate pair: the real part counts twice, the input half
        w, B, V = (torch.as_tensor(x) for x in (form.w, form.B, form.V))
        return Modes(torch.cat([w, w.conj()]), torch.cat([B, B.conj()]) / 2,
                     torch.cat([V, V.conj()], 1), 1.0)  # fmt: skip
    random = basis == "random"
    E = random_perturbation(N, 0.001, seed) if random else optimised_perturbation(N)
    Lambda, V, Vinv = diagonalised(E)
    B = Vinv @ torch.as_tensor(transition("legs", N)[1]).to(V.dtype)
    return Modes(Lambda, B, V, float(torch.linalg.cond(V)))


def whole(C: Tensor, s: Tensor) -> Tensor:
    """C (s - A)^-1 B of HiPPO-LegS itself, by substitution: readouts ``[R, N]``, ``[S]`` to
    ``[R, S]``."""
    total = torch.zeros_like(s)
    states = []
    for n in range(N):
        root = math.sqrt(2 * n + 1)
        x = root * (1 - total) / (s + n + 1)
        total = total + root * x
        states.append(x)
    return C.to(s.dtype) @ torch.stack(states)


def readouts(seed: int, count: int) -> Tensor:
    """Gaussian rows ``[count, N]``."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, N)))


class Transfer(Measurement):
    """The transfer function against that of HiPPO-LegS, for 32 readouts, up to 400 rad/s.

    Measures ``error``, the largest difference, ``peak``, the frequency of it, ``condition`` of the
    eigenvectors and ``largest_real`` part of the eigenvalues.

    Args:
        basis: of :func:`modes_of`.
    """

    def __init__(self, basis: str) -> None:
        self.basis = basis

    def measure(self, seed: int) -> Measured:
        """Evaluate both on the imaginary axis."""
        C, modes = readouts(seed, 32), modes_of(self.basis, seed)
        w = torch.linspace(0, HIGHEST, POINTS, dtype=torch.float64)
        s = 1j * w
        exact = whole(C, s)
        terms = modes.B[:, None] / (s - modes.Lambda[:, None])  # [P, S]
        found = (C.to(modes.V.dtype) @ modes.V) @ terms
        difference = (found - exact).abs().amax(0)
        shown = slice(None, None, 20)
        curves = [self._curve(w[shown], found[0, shown])]
        if self.basis == "optimised":
            curves.append(self._curve(w[shown], exact[0, shown], "HiPPO-LegS"))
        values = {
            "error": float(difference.max()),
            "peak": float(w[difference.argmax()]),
            "condition": modes.condition,
            "largest_real": float(modes.Lambda.real.max()),
        }
        return Measured(values, curves)

    @staticmethod
    def _curve(w: Tensor, gain: Tensor, line: str | None = None) -> Curve:
        return Curve(GAIN, w.tolist(), gain.abs().tolist(), line, "example")


class Robustness(Measurement):
    """How a layer's output changes when 0.1 cos(325.4 t) is added to slow noise of unit variance.

    Measures ``change_5`` and ``change_1``, relative to the output, for steps of 0.005 and 0.001:
    means over 16 readouts.

    Args:
        basis: of :func:`modes_of`.
    """

    def __init__(self, basis: str) -> None:
        self.basis = basis

    def measure(self, seed: int) -> Measured:
        """Drive the system with both."""
        modes = modes_of(self.basis, seed)
        C = readouts(seed, 16).to(modes.V.dtype) @ modes.V
        slow = slow_noise(seed)[:STEPS]
        slow = slow / slow.std()
        values, curves = {}, []
        for name, dt in (("change_5", 0.005), ("change_1", 0.001)):
            wave = AMPLITUDE * torch.cos(FREQUENCY * dt * torch.arange(STEPS, dtype=slow.dtype))
            A = (dt * modes.Lambda).exp()
            b = torch.stack([slow, wave])[..., None] * ((A - 1) / modes.Lambda * modes.B)
            clean, added = (diagonal_scan(A, b) @ C.T).real  # [L, 16] each
            change = added.norm(dim=0) / clean.norm(dim=0)
            values[name] = float(change.mean())
            if name == "change_5":
                x = range(STEPS - 200, STEPS)
                y = (clean + added)[-200:, 0].tolist()
                curves = [Curve(OUTPUT, x, y, style="example")]
                if self.basis == "optimised":
                    y = clean[-200:, 0].tolist()
                    curves.append(Curve(OUTPUT, x, y, "PTD without it", "example"))
        return Measured(values, curves)
