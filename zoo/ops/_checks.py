"""What the registered ops ask of their arguments: csrc/common/checks.h once more, in Python.

The kernels check for themselves. This is for the two answers without a kernel, the fake one, which
compilers ask and which tensors on ``meta`` get, and the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import ZooError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Complex dtypes, with that of their parts.
COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def as_pairs(t: Tensor) -> Tensor:
    """Complex numbers as contiguous pairs, which is what the kernels take."""
    return torch.view_as_real(t.resolve_conj()).contiguous()


def as_complex(t: Tensor) -> Tensor:
    """Pairs as complex numbers."""
    return torch.view_as_complex(t)


def check_one_device(op: str, **tensors: Tensor | None) -> None:
    """All tensors are where the first is.

    PyTorch's own operations answer on ``meta``, or with a foreign error, where one of several
    arguments has no memory.

    Raises:
        ZooError: one is elsewhere.
    """
    given = {name: t for name, t in tensors.items() if t is not None}
    main = next(iter(given))
    for name, t in given.items():
        if t.device != given[main].device:
            raise ZooError(
                f"{op}: {name} is on {t.device} and {main} on {given[main].device}; move them to "
                "one device"
            )


class Arguments:
    """Checks of one call of ``op``; all tensors must be on the device of ``main``."""

    def __init__(self, op: str, name: str, main: Tensor) -> None:
        self.op, self.main = op, main
        self.that(main.layout == torch.strided, f"{name} has layout {main.layout}")
        self.that(_has_memory(main), f"{name} has no memory behind it")

    def that(self, holds: bool, otherwise: str) -> None:
        """Raise :class:`ZooError` unless ``holds``."""
        if not holds:
            raise ZooError(f"{self.op}: {otherwise}")

    def is_float(self, name: str, t: Tensor) -> None:
        """A dtype that the kernels know."""
        self.that(
            t.dtype in FLOATS,
            f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}",
        )

    def is_single_or_double(self, name: str, t: Tensor) -> None:
        """A dtype that is computed in as it is, for kernels that know no other."""
        self.that(
            t.dtype in (torch.float32, torch.float64),
            f"{name} must be float32 or float64, got {t.dtype}",
        )

    def has_dims(self, name: str, t: Tensor, dims: str) -> None:
        """As many dimensions as there are words in ``dims``."""
        expected = dims.split()
        self.that(
            t.dim() == len(expected),
            f"{name} is {list(t.shape)}, expected [{', '.join(expected)}]",
        )

    def not_empty(self, name: str, t: Tensor, *dims: int) -> None:
        """None of these dimensions is 0."""
        for dim in dims:
            self.that(
                t.shape[dim] > 0, f"{name} is {list(t.shape)}, of which {dim} must not be empty"
            )

    def fits(
        self, name: str, t: Tensor | None, shape: Sequence[int | None], dtype: torch.dtype
    ) -> None:
        """Shape (None: any size), dtype and device."""
        if t is None:
            return
        fits = t.dim() == len(shape) and t.dtype == dtype and t.device == self.main.device
        fits = fits and all(e is None or e == n for e, n in zip(shape, t.shape, strict=True))
        sizes = ["any" if n is None else n for n in shape]
        self.that(
            fits and t.layout == torch.strided,
            f"{name} is {t.dtype} {list(t.shape)} on {t.device}, expected {dtype} {sizes} on "
            f"{self.main.device}",
        )
        self.that(_has_memory(t), f"{name} has no memory behind it")

    def plain(
        self, name: str, t: Tensor | None, shape: Sequence[int | None], dtype: torch.dtype
    ) -> None:
        """Contiguous as well."""
        self.fits(name, t, shape, dtype)
        self.that(t is None or t.is_contiguous(), f"{name} must be contiguous")

    def last_contiguous(self, name: str, t: Tensor) -> None:
        """Stride 1 in the last dimension."""
        self.that(
            t.shape[-1] <= 1 or t.numel() == 0 or t.stride(-1) == 1,
            f"the last dimension of {name} must have stride 1",
        )

    def will_change(self, name: str, t: Tensor, *others: Tensor | None) -> None:
        """For what the call overwrites: no element stands for two or is another argument's."""
        self.that(
            not _overlaps_itself(t),
            f"{name} is overwritten, but some of its elements share memory (expand?); pass a copy",
        )
        self.that(
            not any(o is not None and _shares_memory(t, o) for o in others),
            f"{name} is overwritten, but shares memory with another argument; pass a copy of one",
        )
        self.that(
            not (torch.is_grad_enabled() and t.requires_grad),
            f"{name} requires a gradient, which overwriting it would lose; use torch.no_grad() or "
            "a copy",
        )


def _overlaps_itself(t: Tensor) -> bool:
    dims = [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]
    if t.numel() < 2 or not all(isinstance(stride, int) for stride, _ in dims):
        return any(stride == 0 for stride, _ in dims) and t.numel() > 0
    reach = 0
    for stride, size in sorted(dims):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _is_real(t: Tensor) -> bool:
    """Whether there is memory to ask about."""
    fake = isinstance(t, torch._subclasses.FakeTensor)
    return not fake and t.device.type != "meta" and not torch.compiler.is_compiling()


def _extent(t: Tensor) -> int:
    """Elements from the first to the last."""
    return sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1


def _has_memory(t: Tensor) -> bool:
    """Storage can be taken away, and is where parameters are sharded."""
    if t.layout != torch.strided or not _is_real(t) or not t.numel():
        return True
    end = (t.storage_offset() + _extent(t)) * t.element_size()
    return bool(end <= t.untyped_storage().nbytes())


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    if not (_is_real(a) and _is_real(b) and a.numel() and b.numel()):
        return False
    end, other_end = (t.data_ptr() + _extent(t) * t.element_size() for t in (a, b))
    return a.data_ptr() < other_end and b.data_ptr() < end
