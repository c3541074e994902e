"""Diagonal recurrences with varying coefficients, and long convolutions: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import diagonal_scan, diagonal_scan_reference, fft_conv


def _factors(inputs: Inputs) -> Tensor:
    return torch.complex(inputs["real"], inputs["imag"]) if "imag" in inputs else inputs["real"]


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _loop() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """One step after the other."""
        states = diagonal_scan_reference(_factors(inputs), inputs["b"])
        assert isinstance(states, Tensor)
        return _as_real(states)

    return run


def _doubling() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """log2(L) passes over everything, each combining steps twice as far apart."""
        a = _factors(inputs)
        b = inputs["b"].to(a.dtype)
        distance = 1
        while distance < b.shape[1]:
            head, tail = b[:, :distance], b[:, distance:]
            b = torch.cat([head, a[:, distance:] * b[:, :-distance] + tail], dim=1)
            a = torch.cat([a[:, :distance], a[:, distance:] * a[:, :-distance]], dim=1)
            distance *= 2
        return _as_real(b)

    return run


@dataclass(frozen=True, kw_only=True)
class DiagonalScan(Case):
    """Other factors at every step, complex or real."""

    batch: int = 8
    length: int = 1024
    channels: int = 256
    complex: bool = True

    op: ClassVar[str] = "diagonal_scan"
    peers: ClassVar[dict[str, Peer]] = {
        "PyTorch loop": Peer(_loop, backward=False),
        "log-depth scan in PyTorch": Peer(_doubling),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """Factors of absolute value up to 1."""
        shape = (self.batch, self.length, self.channels)
        factors = {"real": randn(like, *shape).sigmoid()}
        if self.complex:
            factors = {"real": factors["real"] * 0.7, "imag": randn(like, *shape).sigmoid() * 0.7}
        return {**factors, "b": randn(like, *shape)}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return _as_real(diagonal_scan(_factors(inputs), inputs["b"]))

    def work(self, itemsize: int) -> Work:
        """Factors and inputs are read, states written; backward as much again and the states."""
        numbers = self.batch * self.length * self.channels * (2 if self.complex else 1)
        adds = numbers * (2 if self.complex else 1)
        if self.backward:
            return Work(bytes=8 * itemsize * numbers, multiply_adds=3 * adds)
        return Work(bytes=3 * itemsize * numbers, multiply_adds=adds)


def _papers() -> Callable[[Inputs], Any]:
    def run(inputs: Inputs) -> Tensor:
        """As the papers' references call torch.fft."""
        u, k, D = inputs["u"], inputs["k"], inputs["D"]
        length = u.shape[-1]
        u_f, k_f = torch.fft.rfft(u, n=2 * length), torch.fft.rfft(k, n=2 * length)
        y = torch.fft.irfft(u_f * k_f, n=2 * length)[..., :length]
        return y + D[:, None] * u

    return run


@dataclass(frozen=True, kw_only=True)
class FftConv(Case):
    """Causal, with a skip."""

    batch: int = 8
    channels: int = 256
    length: int = 4096

    op: ClassVar[str] = "fft_conv"
    peers: ClassVar[dict[str, Peer]] = {"torch.fft as in the papers": Peer(_papers)}

    def inputs(self, like: Tensor) -> Inputs:
        """Kernels that keep the size of what they see."""
        return {
            "u": randn(like, self.batch, self.channels, self.length),
            "k": randn(like, self.channels, self.length) / self.length**0.5,
            "D": randn(like, self.channels),
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return fft_conv(**inputs)

    def work(self, itemsize: int) -> Work:
        """Inputs and kernels read, outputs written; two real transforms of twice the length."""
        rows, points = self.batch * self.channels, 2 * self.length
        flops = 2 * rows * 2.5 * points * (points - 1).bit_length()
        passes = 3 if self.backward else 1
        moved = (2 * rows + self.channels) * self.length * itemsize
        return Work(bytes=passes * moved, multiply_adds=passes * flops / 2)
