"""cross_scan and cross_merge: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops import cross_merge, cross_merge_reference, cross_scan, cross_scan_reference


def _scan_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: cross_scan_reference(**inputs)


def _merge_reference() -> Callable[[Inputs], Any]:
    return lambda inputs: cross_merge_reference(**inputs)


@dataclass(frozen=True, kw_only=True)
class CrossScan(Case):
    """A map to sequences."""

    batch: int = 8
    channels: int = 192
    height: int = 56
    width: int = 56
    order: str = "cross2d"
    channel_last: bool = False

    op: ClassVar[str] = "cross_scan"
    peers: ClassVar[dict[str, Peer]] = {"PyTorch reference": Peer(_scan_reference)}

    def inputs(self, like: Tensor) -> Inputs:
        """A map in either layout."""
        B, C, H, W = self.batch, self.channels, self.height, self.width
        if self.channel_last:
            return {"x": randn(like, B, H, W, C).permute(0, 3, 1, 2), "order": self.order}
        return {"x": randn(like, B, C, H, W), "order": self.order}

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return cross_scan(**inputs)

    def work(self, itemsize: int) -> Work:
        """Each element is read once and written once in every way that it is part of."""
        elements = self.batch * self.channels * self.height * self.width
        moved = elements * (3 if self.order == "cross2d" else 2)
        return Work(bytes=itemsize * moved * (2 if self.backward else 1))


@dataclass(frozen=True, kw_only=True)
class CrossMerge(CrossScan):
    """Sequences to a map."""

    op: ClassVar[str] = "cross_merge"
    peers: ClassVar[dict[str, Peer]] = {"PyTorch reference": Peer(_merge_reference)}

    def inputs(self, like: Tensor) -> Inputs:
        """The sequences of a random map."""
        map_inputs = super().inputs(like)
        return {
            "ys": cross_scan(map_inputs["x"], self.order),
            "height": self.height,
            "width": self.width,
            "order": self.order,
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return cross_merge(**inputs)
