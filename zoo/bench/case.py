"""What a line of the bench is: an op at a shape, the work it cannot do without, and its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a call must move and compute at the least.

    Attributes:
        bytes: each input read and each output written once.
        exponentials: and logarithms, sines, roots.
        multiply_adds: outside matrix products, one element each.
        matmul_flops: of matrix products, two for each multiplication with its addition.
    """

    bytes: float
    exponentials: float = 0.0
    multiply_adds: float = 0.0
    matmul_flops: float = 0.0


@dataclass(frozen=True)
class Peer:
    """Something else that does the same.

    Attributes:
        load: returns the function, from the inputs to the output; raises ImportError if it is not
            installed.
        devices: on which it runs.
        threads: if it is to run on a number of threads of its own.
        backward: False where its backward pass would take minutes.
    """

    load: Callable[[], Callable[[Inputs], Any]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    threads: int | None = None
    backward: bool = True


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the bench. A subclass is an op; its fields are the op's sizes and settings.

    Attributes:
        dtype: of the sequences; by default float32 on a CPU and bfloat16 on a GPU.
        backward: time the forward and the backward pass together.
        compare: run the peers, too; False where they would take minutes or all memory.
    """

    dtype: str = ""
    backward: bool = False
    compare: bool = True

    op: ClassVar[str]
    peers: ClassVar[dict[str, Peer]] = {}

    def inputs(self, like: Tensor) -> Inputs:
        """Random arguments; ``like`` is an empty tensor of the case's dtype and device."""
        raise NotImplementedError

    def run(self, inputs: Inputs) -> Tensor:
        """The op itself."""
        raise NotImplementedError

    def error(self, inputs: Inputs) -> float:
        """Deviation from float64, as a norm, relative to the result; on the same numbers."""
        found, expected = (
            self.run(_copied(inputs, dtype)).double() for dtype in (None, torch.double)
        )
        return float((found - expected).norm() / expected.norm())

    def work(self, itemsize: int) -> Work:
        """What a call must do at the least; ``itemsize``: bytes of a number of the sequences."""
        raise NotImplementedError

    def sizes(self) -> dict[str, Any]:
        """The fields of the subclass."""
        common = {field.name for field in fields(Case)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in common}

    def label(self) -> str:
        """Sizes as ``1 x 1536 x 2048``, then settings by their names."""
        sizes = self.sizes()
        numbers = " x ".join(str(v) for v in sizes.values() if type(v) is int)
        settings = [v if isinstance(v, str) else name for name, v in sizes.items()
                    if type(v) is not int and v]  # fmt: skip
        return ", ".join([numbers, *settings])

    def dtype_on(self, device: str) -> torch.dtype:
        """The dtype of the sequences on this device."""
        return getattr(torch, self.dtype or ("bfloat16" if device == "cuda" else "float32"))


def randn(like: Tensor, *shape: int) -> Tensor:
    """Normal random numbers in the dtype and on the device of ``like``."""
    return torch.randn(shape, dtype=like.dtype, device=like.device)


def _copied(inputs: Inputs, dtype: torch.dtype | None) -> Inputs:
    """Copies, because some ops overwrite an argument; the real numbers in ``dtype``, if given."""
    return {
        name: value.to(dtype if value.is_floating_point() else None, copy=True)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
