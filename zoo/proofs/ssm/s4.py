"""S4: its kernel against the powers of the matrix, and what its states remember."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor

from zoo.layers.s4 import SSMConv
from zoo.layers.ssm_kernel import NPLRKernel
from zoo.layers.ssm_recurrence import krylov, with_conjugates
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.ssm._readout import DT, bilinear, random_system, recalled, slow_noise, states_of

KERNEL = Axes("A kernel of 64 states", "step", "K")
COST = Axes("What kernels must hold at once", "length", "numbers", log="xy")


class Kernel(Measurement):
    """S4's kernel in float32, of a random C, against the powers of its matrix in float64.

    Measures ``error``, the largest difference, and ``step_error``, that of the convolution from
    the recurrence over 256 steps, both relative to the largest value.

    Args:
        length: steps.
        dt: step size.
        d_state: N.
    """

    def __init__(self, length: int = 1024, dt: float = 0.01, d_state: int = 64) -> None:
        self.length, self.dt, self.d_state = length, dt, d_state

    def measure(self, seed: int) -> Measured:
        """Compare."""
        torch.manual_seed(seed)
        layer = SSMConv(
            4, mode="dplr", d_state=self.d_state, activation=None, dt_min=self.dt, dt_max=self.dt
        )
        assert isinstance(layer.kernel, NPLRKernel)
        with torch.no_grad():
            expected = by_powers(layer.kernel, self.length)
            found = layer.kernel(self.length)[0][0].double()
            x = torch.randn(1, 256, 4)
            state, whole = layer.allocate_state(1), layer(x)
            steps = torch.cat([layer(x[:, t : t + 1], state) for t in range(256)], 1)
        error = (found - expected).abs().max() / expected.abs().max()
        step_error = (steps - whole).abs().max() / whole.abs().max()
        values = {"error": float(error), "step_error": float(step_error)}
        shown = min(self.length, 512)
        return Measured(values, [Curve(KERNEL, range(shown), found[0, :shown].tolist())])


def by_powers(kernel: NPLRKernel, length: int) -> Tensor:
    """C A^l B ``[H, length]``, in float64, of the dense matrix of a kernel whose C is C itself."""
    dt, A, B, C = (t.to(torch.complex128) for t in kernel.continuous())
    P = torch.view_as_complex(kernel.P.double()).repeat(1, kernel.repeat, 1)
    A, B, C, P = (with_conjugates(t) for t in (A, B[0], C[0], P))
    matrix = torch.diag_embed(A) - torch.einsum("rhm,rhn->hmn", P, P.conj())
    systems = [bilinear_of(m, b, d) for m, b, d in zip(matrix, B, dt[:, 0].real, strict=True)]
    A_bar, B_bar = (torch.stack(parts) for parts in zip(*systems, strict=True))
    return torch.einsum("hn,hnl->hl", C, krylov(A_bar, B_bar, length)).real


def bilinear_of(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """The discrete system of one feature."""
    return bilinear(A, B, float(dt))


class Cost(Measurement):
    """One kernel of each of ``features`` systems, by S4 or by the powers that LSSL takes.

    Measures ``numbers``, how many must be held at once, and ``seconds``.

    Args:
        by: whose way.
        features, d_state, length: H, N, L.
    """

    seeded = False

    def __init__(
        self,
        by: Literal["s4", "powers"],
        features: int = 64,
        d_state: int = 64,
        length: int = 2048,
    ) -> None:
        self.by, self.features, self.d_state, self.length = by, features, d_state, length

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """The least of three runs."""
        torch.manual_seed(0)
        H, N, L = self.features, self.d_state, self.length
        kernel = NPLRKernel(H, l_max=L, d_state=N)
        numbers = H * L * 8  # the four products at L/2 complex points, and the kernel
        if self.by == "powers":
            A, B = (t.real.float() for t in kernel._dense(1.0))
            numbers = H * N * L
        lengths = [L // 8, L // 4, L // 2, L]
        curve = Curve(COST, lengths, [numbers / L * length for length in lengths])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            kernel(L) if self.by == "s4" else krylov(A, B, L)
            seconds.append(time.perf_counter() - start)
        return Measured({"numbers": numbers, "seconds": min(seconds)}, [curve])


class Memory(Measurement):
    """Reads the input of 100 and of 400 steps ago out of the states of an S4 kernel.

    Measures the share of the variance that is explained, ``r2_100`` and ``r2_400``.

    Args:
        matrix: "legs", as S4 starts, or "random".
        d_state: N.
    """

    def __init__(self, matrix: Literal["legs", "random"], d_state: int = 64) -> None:
        self.matrix, self.d_state = matrix, d_state

    def measure(self, seed: int) -> Measured:
        """Drive it with slow noise."""
        u = slow_noise(seed)
        if self.matrix == "random":
            A, B = bilinear(*random_system(seed, self.d_state), DT)
        else:
            kernel = NPLRKernel(1, d_state=self.d_state, init="legs", dt_min=DT, dt_max=DT,
                                B_clip=None).double()  # fmt: skip
            with torch.no_grad():
                A, B = (t[0] for t in kernel._dense(1.0))
        values, curve = recalled(states_of(A, B, u), u)
        return Measured(values, [curve])
