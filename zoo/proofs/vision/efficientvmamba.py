"""EfficientVMamba: the atrous scan visits each cell once and loses little (sections 3.2, 3.3)."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

import zoo
from zoo.layers.ss2d import SCANS, SS2D
from zoo.models.vision.efficientvmamba import EVSSBlock
from zoo.ops import cross_merge, cross_scan
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import reach


class Positions(Measurement):
    """How many positions a way of scanning visits on a map, and whether it gives all back.

    Args:
        scan: "atrous" or "cross2d".
        size: side of the map.
    """

    def __init__(self, scan: Literal["atrous", "cross2d"], size: int = 14) -> None:
        self.scan, self.size = scan, size

    def measure(self, seed: int) -> Measured:
        """Count visited positions; gather and scatter even and odd maps."""
        torch.manual_seed(seed)
        sequences, passes = SCANS[self.scan]
        scanned = cross_scan(torch.zeros(1, 1, self.size, self.size), self.scan)
        visits = {"atrous": 1, "cross2d": sequences}[self.scan]
        error = 0.0
        for height, width in ((self.size, self.size), (self.size + 1, self.size - 1), (5, 7)):
            x = torch.randn(1, 2, height, width)
            back = cross_merge(cross_scan(x, self.scan), height, width, self.scan) / visits
            error = max(error, (back - x).abs().max().item())
        cells = torch.arange(self.size**2).view(1, 1, self.size, self.size)
        path = cross_scan(cells.float(), self.scan)[0, 0, 0].long()
        when = torch.full((self.size**2,), torch.nan)
        when[path] = torch.arange(len(path)).float()
        return Measured(
            {"count": scanned.shape[1] * scanned.shape[3] * len(passes), "error": error},
            pictures=[{"step of the first scan": when.view(self.size, self.size).numpy()}],
        )


class Parameters(Measurement):
    """Number of parameters of a model.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    seeded = False

    def measure(self, seed: int) -> Measured:
        """Build it without memory and count."""
        with torch.device("meta"):
            model = zoo.create_model(self.model)
        return Measured({"count": sum(parameter.numel() for parameter in model.parameters())})


class BlockReach(Measurement):
    """Number of cells of a 12x12 map that one output cell depends on, channel attention aside.

    Args:
        blocks: blocks in a row.
        convolutions: keep the 3x3 convolutions, before the scan and beside it.
        row, column: the output cell.
    """

    def __init__(self, blocks: int, convolutions: bool, row: int = 6, column: int = 6) -> None:
        self.blocks, self.convolutions = blocks, convolutions
        self.place = (row, column)

    def measure(self, seed: int) -> Measured:
        """Look at the gradient of the output cell to all inputs."""
        torch.manual_seed(seed)
        blocks = [EVSSBlock(8, {"scan": "atrous"}) for _ in range(self.blocks)]
        for block in blocks:
            block.add_module("se", nn.Identity())  # its global mean reaches everything
            if not self.convolutions:
                block.add_module("conv_branch", Zero())
                block.op.add_module("conv2d", nn.Identity())
        network = nn.Sequential(*blocks).double().eval()
        for block in blocks:
            block.op.force_fp32 = False
        x = torch.randn(1, 12, 12, 8, dtype=torch.float64)
        reached = reach(network, x, self.place)
        picture = reached.double()
        picture[self.place] = torch.nan  # where we look from
        return Measured(
            {"cells": reached.sum().item()}, pictures=[{"reached cells": picture.numpy()}]
        )


class Branches(EVSSBlock):
    """The block with one way of scanning, or with a branch that gives zero in its place.

    Args:
        dim: width.
        scan: "atrous", "cross2d" or "none".
    """

    def __init__(self, dim: int, scan: Literal["atrous", "cross2d", "none"]) -> None:
        super().__init__(dim, {"scan": "atrous" if scan == "none" else scan})
        if scan == "none":
            self.add_module("op", Zero())


class ScanTime(Measurement):
    """Seconds for the scans of one map, everything of SS2D between its convolution and its norm.

    Args:
        scan: "atrous" or "cross2d".
        size: side of the map.
        dim: its channels.
    """

    def __init__(self, scan: Literal["atrous", "cross2d"], size: int = 56, dim: int = 96) -> None:
        self.scan, self.size, self.dim = scan, size, dim

    @torch.inference_mode()
    def measure(self, seed: int) -> Measured:
        """Median of five, after one that does not count; maps of other sizes for the figure."""
        torch.manual_seed(seed)
        op = SS2D(self.dim, ssm_ratio=1.0, scan=self.scan)
        times = {}
        for size in (14, 28, self.size):
            x = torch.randn(1, self.dim, size, size)
            seconds = []
            for _ in range(6):
                started = time.perf_counter()
                op.scan_map(x)
                seconds.append(time.perf_counter() - started)
            times[size] = median(seconds[1:])
        axes = Axes("Time of the scans", "side of the map, cells", "ms", "xy")
        curve = Curve(axes, list(times), [1e3 * value for value in times.values()])
        return Measured({"seconds": times[self.size]}, [curve])


class Zero(nn.Module):
    """Stands for a branch that contributes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like x."""
        return torch.zeros_like(x)
