"""Scores of counting by density."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchmetrics import Metric


class GAME(Metric):
    """Grid average mean error: absolute errors of the counts in 4^level cells, summed per picture.

    Args:
        level: 0 is the mean absolute error of the whole count.
    """

    higher_is_better = False

    def __init__(self, level: int) -> None:
        super().__init__()
        self.side = 2**level
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Density maps [B, 1, H, W] twice."""
        cells = adaptive_avg_pool2d(predicted - target, self.side)
        area = predicted.shape[-2] * predicted.shape[-1] / self.side**2
        self.total += (cells.abs() * area).sum().double()
        self.count += len(predicted)

    def compute(self) -> Tensor:
        """Mean over pictures."""
        return (self.total / self.count).float()
