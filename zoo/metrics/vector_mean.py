"""Mean of vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class VectorMean(Metric):
    """Mean over samples of values that each sample has several of, such as a loss at each position.

    All samples must have as many.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        # a list, as a process without samples does not know how many values there are
        self.add_state("total", [], dist_reduce_fx="cat")
        self.add_state("size", torch.tensor(0), dist_reduce_fx="max")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add samples, ``[B, T]``."""
        self.total = [sum(self.total, values.double().sum(0))]
        self.size.fill_(values.shape[1])
        self.count += len(values)

    def compute(self) -> Tensor:
        """The mean of each value, ``[T]``."""
        total = dim_zero_cat(self.total).view(-1, int(self.size)).sum(0)
        return (total / self.count).float()
