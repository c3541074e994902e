"""What the machine can do, measured before anything else in the same process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zoo.bench.case import Work
from zoo.bench.measure import median_seconds

#: Multiply-adds in whose time an exponential can be had: a CPU's polynomial (rounding and scaling
#: run beside it), a GPU's special function unit, of which there is one for eight lanes.
EXPONENTIAL = {"cpu": 5, "cuda": 8}

_COPY_BYTES = tuple(2**n for n in range(18, 30))  # read and written together


@dataclass(frozen=True)
class Bounds:
    """Rates of the machine.

    Attributes:
        copy: seconds that a copy takes, by the bytes that it reads and writes: in the cache and
            beyond it.
        matmul_flops: of a float32 matrix product, a second. On a CPU it is also the rate at which
            other arithmetic can run.
        exponentials: of float32 numbers in the cache, a second, by PyTorch's own exp. It is shown
            beside the others; the bound counts what an exponential cannot do without.
        exponential: multiply-adds in whose time one can be had, see :data:`EXPONENTIAL`.
    """

    copy: dict[int, float]
    matmul_flops: float
    exponentials: float
    exponential: int

    def copy_seconds(self, size: float) -> float:
        """Time to read and write so many bytes, at the rate measured for the next larger size."""
        sizes = sorted(self.copy)
        nearest = sizes[min(bisect_left(sizes, size), len(sizes) - 1)]
        return self.copy[nearest] * size / nearest

    def seconds(self, work: Work) -> tuple[float, str]:
        """The least time for this work, and what sets it: "memory" or "arithmetic"."""
        memory = self.copy_seconds(work.bytes)
        multiply_adds = self.exponential * work.exponentials + work.multiply_adds
        arithmetic = (2 * multiply_adds + work.matmul_flops) / self.matmul_flops
        return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


def measure_bounds(device: str, threads: int, seconds: float) -> Bounds:
    """Measure them; ``seconds`` for each."""

    def time(call: Callable[[], object]) -> float:
        return median_seconds({"call": (lambda: (call(), None)[1], threads)}, seconds)["call"]

    copy = {}
    for size in _COPY_BYTES:
        source = torch.ones(size // 8, device=device)
        target = torch.empty_like(source)
        copy[size] = time(lambda source=source, target=target: target.copy_(source))
    n = 4096 if device == "cuda" else 1024
    a, b, out = (torch.ones(n, n, device=device) for _ in range(3))
    few = torch.ones(2**22 if device == "cuda" else 2**16, device=device)
    result = torch.empty_like(few)
    return Bounds(
        copy=copy,
        matmul_flops=2 * n**3 / time(lambda: torch.mm(a, b, out=out)),
        exponentials=few.numel() / time(lambda: torch.exp(few, out=result)),
        exponential=EXPONENTIAL[device],
    )
