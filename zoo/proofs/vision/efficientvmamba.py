"""EfficientVMamba: the atrous scan visits each cell once and loses little (sections 3.2, 3.3)."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.data.synthetic.cues import CUE_CHANNELS, cue_maps
from zoo.layers.ss2d import SCANS, SS2D
from zoo.models.vision.efficientvmamba import EVSSBlock
from zoo.ops import cross_merge, cross_scan
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit, reach


class Positions(Measurement):
    """How many positions a way of scanning visits on a map, and whether it gives all back.

    Args:
        scan: "atrous" or "cross2d".
        size: side of the map.
    """

    def __init__(self, scan: Literal["atrous", "cross2d"], size: int = 14) -> None:
        self.scan, self.size = scan, size

    def measure(self) -> dict[str, float]:
        """Count visited positions; gather and scatter even and odd maps."""
        sequences, passes = SCANS[self.scan]
        scanned = cross_scan(torch.zeros(1, 1, self.size, self.size), self.scan)
        visits = {"atrous": 1, "cross2d": sequences}[self.scan]
        error = 0.0
        for height, width in ((self.size, self.size), (self.size + 1, self.size - 1), (5, 7)):
            x = torch.randn(1, 2, height, width)
            back = cross_merge(cross_scan(x, self.scan), height, width, self.scan) / visits
            error = max(error, (back - x).abs().max().item())
        return {"count": scanned.shape[1] * scanned.shape[3] * len(passes), "error": error}


class Parameters(Measurement):
    """Number of parameters of a model.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def measure(self) -> dict[str, float]:
        """Build it without memory and count."""
        with torch.device("meta"):
            model = zoo.create_model(self.model)
        return {"count": sum(parameter.numel() for parameter in model.parameters())}


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

    def measure(self) -> dict[str, float]:
        """Look at the gradient of the output cell to all inputs."""
        torch.manual_seed(0)
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
        return {"cells": reach(network, x, self.place).sum().item()}


class CueDirection(Measurement):
    """Accuracy with which every cell learns in which direction a cue lies that one cell holds.

    Four classes: above or not, left or not. Channel attention alone cannot tell, for its mean knows
    no places.

    Args:
        scan: "atrous", "cross2d", or "none": the scan's branch gives zero.
        dim: width of the two blocks.
        size: side of the maps.
        steps, batch_size, lr: of the training.
        test_maps: maps that are measured.
        seed: of weights and maps.
    """

    def __init__(
        self,
        scan: Literal["atrous", "cross2d", "none"],
        dim: int = 24,
        size: int = 16,
        steps: int = 400,
        batch_size: int = 32,
        lr: float = 5e-3,
        test_maps: int = 1000,
        seed: int = 0,
    ) -> None:
        self.scan, self.dim, self.size = scan, dim, size
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_maps, self.seed = test_maps, seed

    def measure(self) -> dict[str, float]:
        """Train, then count right cells of new maps; ``inner`` of those a quarter of the side or
        more from the border, which betrays where a cell lies."""
        torch.manual_seed(self.seed)
        blocks = [
            EVSSBlock(self.dim, {"scan": "atrous" if self.scan == "none" else self.scan})
            for _ in range(2)
        ]
        if self.scan == "none":
            for block in blocks:
                block.add_module("op", Zero())
        network = nn.Sequential(
            nn.Linear(CUE_CHANNELS, self.dim),
            *blocks,
            nn.LayerNorm(self.dim),
            nn.Linear(self.dim, 4),
        )
        generator = torch.Generator().manual_seed(self.seed)
        line = torch.arange(self.size)

        def batch(count: int) -> tuple[Tensor, Tensor]:
            maps, _, cells = cue_maps(count, self.size, self.size, generator)
            row, column = (x[:, None, None] for x in (cells // self.size, cells % self.size))
            return maps.permute(0, 2, 3, 1), 2 * (row < line[:, None]) + (column < line)

        def loss(step: int) -> Tensor:
            maps, targets = batch(self.batch_size)
            return F.cross_entropy(network(maps).permute(0, 3, 1, 2), targets)

        fit(network, loss, self.steps, self.lr)
        maps, targets = batch(self.test_maps)
        with torch.inference_mode():
            guesses = torch.cat([network(part).argmax(dim=-1) for part in maps.split(200)])
        right = (guesses == targets).float()
        rim = self.size // 4
        inner = right[:, rim:-rim, rim:-rim]
        return {"accuracy": right.mean().item(), "inner": inner.mean().item()}


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
    def measure(self) -> dict[str, float]:
        """Median of five, after one that does not count."""
        torch.manual_seed(0)
        op = SS2D(self.dim, ssm_ratio=1.0, scan=self.scan)
        x = torch.randn(1, self.dim, self.size, self.size)
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            op.scan_map(x)
            seconds.append(time.perf_counter() - started)
        return {"seconds": median(seconds[1:])}


class Zero(nn.Module):
    """Stands for a branch that contributes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like x."""
        return torch.zeros_like(x)
