"""The two state space models of an H3 layer, with the parameters of the authors' files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.cache import ConstantState
from zoo.layers.precision import at_least_fp32
from zoo.ops import fft_conv, vandermonde_kernel


def correlate(C: Tensor, B: Tensor) -> Tensor:
    """``sum_n C_{n+t} B_n`` for all t, along the last dimension, of which both have N."""
    size = 2 * C.shape[-1]
    product = torch.fft.rfft(B, n=size).conj() * torch.fft.rfft(C, n=size)
    return torch.fft.irfft(product, n=size)[..., : C.shape[-1]]


class ShiftKernel(nn.Module):
    """A state space model whose state matrix shifts by one place: N taps of memory.

    Args:
        H: features.
        N: places of the state.
    """

    def __init__(self, H: int, N: int) -> None:
        super().__init__()
        self.B = nn.Parameter(torch.eye(1, N).repeat(H, 1))
        self.C = nn.Parameter(torch.empty(1, H, N))
        nn.init.kaiming_uniform_(self.C.view(H, 1, N), a=math.sqrt(5))

    def forward(self) -> Tensor:
        """The answer to an impulse ``[H, N]``; zero behind it."""
        return correlate(at_least_fp32(self.C[0]), at_least_fp32(self.B))

    def part(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, H, L]`` after a state ``[B, H, N]``: outputs and the state behind them."""
        B, C = at_least_fp32(self.B), at_least_fp32(self.C[0])
        length, places = u.shape[-1], state.shape[-1]
        y = fft_conv(u, self())
        left = correlate(C, state)[..., 1 : length + 1]  # of the shifted state
        y = y + F.pad(left, (0, length - left.shape[-1]))
        newest = u[..., -places:].flip(-1)
        added = fft_conv(F.pad(newest, (0, places - newest.shape[-1])), B)
        return y, F.pad(state, (length, 0))[..., :places] + added


class DiagonalKernel(nn.Module):
    """S4D's kernel with the parameters of the released files, whose imaginary part is positive.

    Args:
        H: features.
        N: real size of a feature's state, even.
        dt_min, dt_max: initial steps are log-uniform between them.
        n_ssm: so many different A and B; None for one of each feature.
        disc: discretisation, "bilinear" or "zoh".
        measure: initialisation, "diag-lin" or "diag-inv".
        bandlimit: silences modes above this part of the sampling frequency.
        force_real: modes without imaginary part.
    """

    def __init__(
        self,
        H: int,
        N: int,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | None = None,
        disc: str = "bilinear",
        measure: str = "diag-lin",
        bandlimit: float | None = None,
        force_real: bool = False,
    ) -> None:
        super().__init__()
        check_choice("H3: disc", disc, ("bilinear", "zoh"))
        check_choice("H3: measure", measure, ("diag-lin", "diag-inv"))
        copies = n_ssm or H
        if N % 2 or H % copies:
            raise ZooError(f"H3: d_state must be even and n_ssm divide {H}, got {N} and {n_ssm}")
        self.disc, self.bandlimit, self.force_real = disc, bandlimit, force_real
        self.repeat = H // copies
        n = torch.arange(N // 2, dtype=torch.float32)
        frequencies = math.pi * n
        if measure == "diag-inv":
            frequencies = N / math.pi * (N / (2 * n + 1) - 1)
        scale = math.log(dt_max / dt_min)
        self.C = nn.Parameter(torch.randn(1, H, N // 2, 2) * math.sqrt(0.5))
        self.log_dt = nn.Parameter(torch.rand(H) * scale + math.log(dt_min))
        self.B = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(copies, N // 2, 1))
        self.inv_A_real = nn.Parameter(torch.full((copies, N // 2), math.log(0.5)))
        self.A_imag = nn.Parameter(frequencies.repeat(copies, 1))

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """log of A-bar, B-bar and C, ``[H, N / 2]`` each, complex."""
        real, imag = -at_least_fp32(self.inv_A_real).exp(), at_least_fp32(self.A_imag)
        A = torch.complex(real, torch.zeros_like(imag) if self.force_real else imag)
        A = A.repeat(self.repeat, 1)
        B, C = (torch.view_as_complex(at_least_fp32(M).contiguous()) for M in (self.B, self.C[0]))
        B = B.repeat(self.repeat, 1)
        dt = at_least_fp32(self.log_dt).exp()[:, None]
        if self.bandlimit is not None:
            C = C * (dt * A.imag.abs() / (2 * math.pi) < self.bandlimit / 2)
        x = dt * A
        if self.disc == "zoh":
            return x, B * (x.exp() - 1) / A, C
        return ((1 + x / 2) / (1 - x / 2)).log(), B * dt / (1 - x / 2), C

    def forward(self, L: int) -> Tensor:
        """The answer to an impulse ``[H, L]``."""
        log_A, B, C = self.discrete()
        return vandermonde_kernel(B * C, log_A, L)


class Kernel(nn.Module):
    """A kernel under the name that it has in the authors' files."""

    def __init__(self, kernel: nn.Module) -> None:
        super().__init__()
        self.kernel = kernel


class H3State(ConstantState):
    """States of the two SSMs of one layer.

    Attributes:
        shift: ``[B, d, N]``, the newest first.
        ssm: ``[B, P, P, H, N / 2]``, complex.
    """

    def __init__(self, shift: Tensor, ssm: Tensor) -> None:
        self.shift, self.ssm = shift, ssm

    def tensors(self) -> list[Tensor]:
        """Both; complex numbers as pairs."""
        return [self.shift, torch.view_as_real(self.ssm)]

    def clone(self) -> H3State:
        """A copy that shares no memory."""
        return H3State(self.shift.clone(), self.ssm.clone())

    def select(self, rows: Sequence[int]) -> H3State:
        """A copy of these sequences."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.shift.device)
        return H3State(self.shift[index], self.ssm[index])

    @classmethod
    def stack(cls, states: Sequence[H3State]) -> H3State:
        """One batch after the other."""
        return cls(torch.cat([s.shift for s in states]), torch.cat([s.ssm for s in states]))
