"""A call of a registered op, for the domain ``ops``."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.ops.recurrent_cell import _STEP, CELLS


@dataclass
class Call:
    """An op and its arguments.

    Args:
        op: its name below ``torch.ops.zoo``.
        arguments: in the order of its schema.
        changed: places of the arguments that it overwrites.
        unread: names of results that are the kernels' own affair.
        wrong: what has been made wrong.
        hidden: whether what is wrong stands in memory, which a compiler does not see.
    """

    op: str
    arguments: list[Any]
    changed: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    wrong: list[str] = field(default_factory=list)
    hidden: bool = False
    around: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __str__(self) -> str:
        def text(a: Any) -> str:
            if not isinstance(a, Tensor):
                return repr(a)
            values = ""
            if a.dtype == torch.int64 and a.numel() < 9:
                with contextlib.suppress(RuntimeError):  # no memory
                    values = f" {a.tolist()}"
            where = "" if a.device.type == "cpu" else f" {a.device}"
            strides = f" strides {a.stride()}" if a.layout == torch.strided else f" {a.layout}"
            return f"{str(a.dtype)[6:]}{list(a.shape)}{strides}{where}{values}"

        made_wrong = f" after {', '.join(self.wrong)}" if self.wrong else ""
        return f"{self.op}({'; '.join(map(text, self.arguments))}){made_wrong}"

    def copy(self) -> Call:
        """Arguments in memory of their own, in the same layout and with the same aliases."""
        new = copy.copy(self)
        storages: dict[int, Any] = {}
        sizes: dict[int, int] = {}
        seen: dict[int, Tensor] = {}

        def duplicate(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.device.type != "cpu" or t.layout != torch.strided:
                return t
            if id(t) in seen:
                return seen[id(t)]
            key = t.untyped_storage()._cdata
            if key not in storages:
                storages[key] = t.untyped_storage().clone()
                sizes[key] = t.untyped_storage().nbytes()
            new = t.detach().new_empty(0)
            new.set_(storages[key], t.storage_offset(), t.shape, t.stride())  # may make it larger
            new = torch._neg_view(new) if t.is_neg() else new
            if t.is_leaf:
                new.requires_grad_(t.requires_grad)
            else:
                new = _Record.apply(new, torch.ones((), requires_grad=True))
            seen[id(t)] = new
            return new

        new.arguments = [duplicate(a) for a in self.arguments]
        for key, size in sizes.items():
            storages[key].resize_(size)
        new.around = {}
        for place in self.changed:
            t = self.arguments[place]
            if isinstance(t, Tensor) and t.device.type == "cpu" and t.layout == torch.strided:
                storage = new.arguments[place].untyped_storage()
                new.around[place] = (_outside(new.arguments[place], storage), storage)
        return new

    def renew_borders(self, place: int) -> None:
        """What the forward pass leaves for a gradient, after argument ``place`` has changed."""
        if self.op == "recurrent_cell_backward" and place in (1, 2, 4):
            self._renew_states()
        if self.op not in ("selective_scan_backward", "ssd_backward", "delta_rule_backward"):
            return
        if place < 3:
            return
        with contextlib.suppress(RuntimeError, ValueError):
            forward = getattr(torch.ops.zoo, self.op.removesuffix("_backward"))
            self.arguments[2] = forward(*self.arguments[3:])[2].detach()

    def _renew_states(self) -> None:
        """Of a recurrent cell, from its gates, if all still have the right form."""
        _, states, gates, _, start, cell = self.arguments
        tensors = (states, gates, start)
        if not all(t.is_contiguous() and t.device.type == "cpu" for t in tensors):
            return
        with contextlib.suppress(RuntimeError, ValueError, IndexError, TypeError):
            now, found = tuple(start.detach()), []
            for raw in gates.detach().unbind(1):
                now = _STEP[CELLS[cell]](raw.unbind(1), *now)
                found.append(torch.stack(now))
            renewed = torch.stack(found, dim=2)
            if renewed.shape == states.shape and renewed.dtype == states.dtype:
                self.arguments[1] = renewed

    def check_surroundings(self, told: str) -> None:
        """Nothing around what the op overwrites has been written."""
        for place, (before, storage) in self.around.items():
            after = _outside(self.arguments[place], storage)
            assert torch.equal(before, after), f"wrote around argument {place}: {told}"

    def equals(self, other: Call) -> bool:
        """Whether the memory of the arguments that are overwritten holds the same."""
        return all(
            _bytes(self.arguments[i]).equal(_bytes(other.arguments[i]))
            for i in self.changed
            if isinstance(self.arguments[i], Tensor)
            and self.arguments[i].device.type == "cpu"
            and self.arguments[i].layout == torch.strided
        )

    def results(self, count: int) -> list[str]:
        """Names of the results to compare, empty for the others."""
        return ["" if i in self.unread else f"result {i}" for i in range(count)]

    def is_plain(self) -> bool:
        """Whether all tensors can be told to a compiler, and lie in memory of their own."""
        tensors = [a for a in self.arguments if isinstance(a, Tensor)]
        return all(
            t.device.type == "cpu" and t.layout == torch.strided and not t.is_neg() for t in tensors
        ) and all(_end(t) <= t.untyped_storage().nbytes() for t in tensors)


def _end(t: Tensor) -> int:
    """Bytes of memory up to the last element."""
    if not t.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (t.storage_offset() + last + 1) * t.element_size()


class _Record(torch.autograd.Function):
    """Gives a tensor a history, and leaves it where it is."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(t)
        return t

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _bytes(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def _outside(t: Tensor, storage: Any) -> Tensor:
    """The bytes of the storage that are not of ``t``."""
    raw = torch.empty(0, dtype=torch.uint8).set_(storage)
    size = t.element_size()
    own = torch.zeros(raw.numel() // size, dtype=torch.bool)
    if t.numel():
        try:
            own.as_strided(t.shape, t.stride(), t.storage_offset()).fill_(True)
        except RuntimeError:  # the storage has been taken away
            return raw
    return raw[: own.numel() * size].view(-1, size)[~own].clone()
