"""EfficientVMamba: the atrous scan visits each cell once and loses little (sections 3.2, 3.3)."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.data.outlines import FIGURES, outlines
from zoo.layers.ss2d import SCANS, SS2D
from zoo.models.vision.efficientvmamba import EfficientVMamba, EVSSBlock
from zoo.ops import cross_merge, cross_scan
from zoo.proofs.base import Measurement
from zoo.proofs.fit import fit, reach


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


class Outlines(Measurement):
    """Test accuracy of a small network on outlined figures.

    Args:
        scan: "atrous", "cross2d", or "none": the scan's branch gives zero.
        steps, batch_size, lr: of the training.
        train_pictures, test_pictures: how many are made.
        seed: of weights and pictures.
    """

    def __init__(
        self,
        scan: Literal["atrous", "cross2d", "none"],
        steps: int = 300,
        batch_size: int = 64,
        lr: float = 3e-3,
        train_pictures: int = 4000,
        test_pictures: int = 1000,
        seed: int = 0,
    ) -> None:
        self.scan, self.steps, self.batch_size, self.lr = scan, steps, batch_size, lr
        self.train_pictures, self.test_pictures, self.seed = train_pictures, test_pictures, seed

    def measure(self) -> dict[str, float]:
        """Train, then test on other pictures."""
        images, classes = outlines(self.train_pictures, seed=self.seed)
        torch.manual_seed(self.seed)
        network = EfficientVMamba(
            patch_size=2,
            depths=(2, 2, 2),
            dims=24,
            num_classes=len(FIGURES),
            drop_path_rate=0.0,
            scan="atrous" if self.scan == "none" else self.scan,
        )
        if self.scan == "none":
            for block in network.modules():
                if isinstance(block, EVSSBlock):
                    block.add_module("op", Zero())

        def loss(step: int) -> Tensor:
            chosen = torch.randint(len(images), (self.batch_size,))
            return F.cross_entropy(network(images[chosen]), classes[chosen])

        fit(network, loss, self.steps, self.lr, weight_decay=0.05)
        images, classes = outlines(self.test_pictures, seed=self.seed + 1)
        with torch.inference_mode():
            guesses = torch.cat([network(part).argmax(dim=1) for part in images.split(200)])
        return {"accuracy": (guesses == classes).float().mean().item()}


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
