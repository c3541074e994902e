"""Kernels of structured state spaces: cases and peers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work
from zoo.ops import (
    cauchy_kernel,
    cauchy_kernel_reference,
    vandermonde_kernel,
    vandermonde_kernel_reference,
)


def _vandermonde_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: vandermonde_kernel_reference(
        *_complex(inputs, "v", "x"), inputs["length"]
    )


def _cauchy_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: torch.view_as_real(cauchy_kernel_reference(*_cauchy_arguments(inputs)))


def _keops() -> Callable[[Inputs], Any]:
    from pykeops.torch import Genred

    # the sum over pairs as S4's code gives it to KeOps
    numerator = "z * ComplexReal(v) - Real2Complex(Sum(v * w))"
    formula = f"ComplexDivide({numerator}, ComplexMult(z - w, z - Conj(w)))"
    sums = Genred(formula, ["v = Vj(2)", "z = Vi(2)", "w = Vj(2)"], reduction_op="Sum", axis=1)

    def run(inputs: Inputs) -> Tensor:
        v, z, w = (torch.view_as_real(t) for t in _cauchy_arguments(inputs))
        return 2 * sums(v.contiguous(), z.contiguous()[None, None], w.contiguous()[None])

    return run


@dataclass(frozen=True, kw_only=True)
class VandermondeKernel(Case):
    """S4D's kernel: features, conjugate pairs of modes, length."""

    features: int = 256
    modes: int = 32
    length: int = 16384

    op: ClassVar[str] = "vandermonde_kernel"
    peers: ClassVar[dict[str, Peer]] = {"sum in PyTorch": Peer(_vandermonde_reference)}

    def inputs(self, like: Tensor) -> Inputs:
        """S4D-Lin, as it starts; complex numbers as pairs."""
        H, N = self.features, self.modes
        dt = _steps(like, H)
        A = torch.stack([torch.full_like(dt, -0.5).expand(H, N), _frequencies(like, H, N)], -1)
        v = torch.randn(1, H, N, 2, dtype=like.dtype, device=like.device)
        return {"v": v, "x": dt[..., None] * A, "length": self.length}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        v, x = _complex(inputs, "v", "x")
        return vandermonde_kernel(v, x, inputs["length"])

    def work(self, itemsize: int) -> Work:
        """A product that advances a mode by a step, and one that adds it; twice that backward."""
        pairs = self.features * self.modes * self.length
        times = 3 if self.backward else 1
        moved = self.features * (self.length + 4 * self.modes)
        return Work(bytes=itemsize * moved * times, multiply_adds=6.0 * pairs * times)


@dataclass(frozen=True, kw_only=True)
class CauchyKernel(Case):
    """S4's kernel: features, conjugate pairs of poles, length; four numerators share the poles."""

    features: int = 256
    poles: int = 32
    length: int = 16384

    op: ClassVar[str] = "cauchy_kernel"
    peers: ClassVar[dict[str, Peer]] = {
        "sum in PyTorch": Peer(_cauchy_reference),
        "KeOps": Peer(_keops),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """Poles of equal distances; complex numbers as pairs. The points are those of S4."""
        H, N = self.features, self.poles
        dt = _steps(like, H)
        w = torch.stack([torch.full_like(dt, -0.5).expand(H, N), -_frequencies(like, H, N)], -1)
        v = torch.randn(4, H, N, 2, dtype=like.dtype, device=like.device)
        return {"v": v, "w": dt[..., None] * w, "length": self.length}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return torch.view_as_real(cauchy_kernel(*_cauchy_arguments(inputs)))

    def work(self, itemsize: int) -> Work:
        """A quotient that all numerators share, and their products; over twice that backward."""
        pairs = self.features * self.poles * self.length / 2
        times = 3 if self.backward else 1
        moved = self.features * (4 * self.length + 8 * self.poles) + self.length
        return Work(
            bytes=itemsize * moved * times, exponentials=pairs * times,
            multiply_adds=(6.0 + 4 * 4) * pairs * times,
        )  # fmt: skip


def _steps(like: Tensor, features: int) -> Tensor:
    spread = torch.rand(features, 1, dtype=like.dtype, device=like.device)
    return (math.log(1e-3) + spread * math.log(100)).exp()


def _frequencies(like: Tensor, features: int, modes: int) -> Tensor:
    return (math.pi * torch.arange(modes).to(like)).expand(features, -1)


def _complex(inputs: Inputs, *names: str) -> list[Tensor]:
    return [torch.view_as_complex(inputs[name].contiguous()) for name in names]


def _cauchy_arguments(inputs: Inputs) -> list[Tensor]:
    v, w = _complex(inputs, "v", "w")
    return [v, _points(inputs["length"], w.device).to(w.dtype), w]


@functools.cache
def _points(length: int, device: torch.device) -> Tensor:
    angle = torch.arange(length // 2, dtype=torch.float64, device=device) / length
    return torch.complex(torch.zeros_like(angle), 2 * (math.pi * angle).tan()).to(torch.complex64)
