"""LSSL: its three views agree, HiPPO's matrix remembers, and a step can be changed afterwards."""

from __future__ import annotations

from typing import Literal

import torch

from zoo.layers.hippo import transition
from zoo.models.ssm.lssl import LSSLLayer
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.ssm._readout import DT, bilinear, random_system, recalled, slow_noise, states_of

VIEWS = Axes("A random layer, one output", "step", "y")
RATE = Axes("A smooth input at half the rate", "time, steps", "output")


class Views(Measurement):
    """A random layer as a convolution and as a recurrence.

    Measures ``error``, their largest difference, of the largest value.

    Args:
        d_state, length: N and L.
    """

    def __init__(self, d_state: int = 64, length: int = 512) -> None:
        self.d_state, self.length = d_state, length

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Compare."""
        torch.manual_seed(seed)
        layer, x = LSSLLayer(4, self.d_state), torch.randn(1, self.length, 4)
        whole, steps = layer(x), layer(x, state=layer.allocate_state(1))
        error = float((steps - whole).abs().max() / whole.abs().max())
        curves = [
            Curve(
                VIEWS,
                range(100),
                y[0, :100, 0].tolist(),
                line=name,
                style="points" if points else "line",
            )
            for name, y, points in (("convolution", whole, False), ("recurrence", steps, True))
        ]
        return Measured({"error": error}, curves)


class Memory(Measurement):
    """Reads the input of 100 and of 400 steps ago out of the states of a dense system.

    Measures the share of the variance that is explained, ``r2_100`` and ``r2_400``.

    Args:
        matrix: a measure of HiPPO, or "random".
        d_state: N.
    """

    def __init__(self, matrix: str, d_state: int = 64) -> None:
        self.matrix, self.d_state = matrix, d_state

    def measure(self, seed: int) -> Measured:
        """Drive it with slow noise."""
        u = slow_noise(seed)
        if self.matrix == "random":
            A, B = random_system(seed, self.d_state)
        else:
            A, B = (torch.from_numpy(m) for m in transition(self.matrix, self.d_state))
        values, curve = recalled(states_of(*bilinear(A, B, DT), u), u)
        return Measured(values, [curve])


class Rate(Measurement):
    """A layer fed every second step of a smooth input.

    Measures ``error``, its output against that at full rate, relative to it.

    Args:
        step: "scaled": the step size is doubled; "kept": it is not.
    """

    def __init__(self, step: Literal["scaled", "kept"]) -> None:
        self.step = step

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Compare."""
        torch.manual_seed(seed)
        layer = LSSLLayer(1, 64, dt={"min": DT, "max": DT}, activation=None).double()
        layer.output_linear = torch.nn.Identity()
        x = slow_noise(seed, share=0.02)[None, :1000, None]
        fine = layer(x)[0, ::2, 0]
        coarse = layer(x[:, ::2], rate=2.0 if self.step == "scaled" else 1.0)[0, :, 0]
        error = float((coarse - fine).norm() / fine.norm())
        steps = range(0, 1000, 2)
        return Measured({"error": error}, [Curve(RATE, steps, coarse.tolist())])
