"""Linear forecasts: NLinear and DLinear (Zeng et al., AAAI 2023, arXiv 2205.13504).

Each variate by itself, with weights that all share. As the authors' code (cure-lab/LTSF-Linear) has
them; its option of separate weights for each variate is not here.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.registry import register_model


class NLinear(nn.Module):
    """A linear map of what the history differs from its last value.

    Args:
        seq_len: steps of history; pred_len: steps of forecast.
    """

    def __init__(self, seq_len: int = 336, pred_len: int = 96) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.Linear = nn.Linear(seq_len, pred_len)

    def forward(self, x: Tensor) -> Tensor:
        """History [B, L, M] to forecast [B, T, M]."""
        _check_length(x, self.seq_len)
        last = x[:, -1:]
        return self.Linear((x - last).transpose(1, 2)).transpose(1, 2) + last


class DLinear(nn.Module):
    """A linear map of the trend, a moving average, and one of the rest.

    Args:
        seq_len: steps of history; pred_len: steps of forecast.
        kernel_size: steps of the moving average, odd; the ends are repeated.
    """

    def __init__(self, seq_len: int = 336, pred_len: int = 96, kernel_size: int = 25) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ZooError(f"kernel_size is {kernel_size}, expected an odd number")
        self.seq_len, self.kernel_size = seq_len, kernel_size
        self.Linear_Seasonal = nn.Linear(seq_len, pred_len)
        self.Linear_Trend = nn.Linear(seq_len, pred_len)

    def forward(self, x: Tensor) -> Tensor:
        """History [B, L, M] to forecast [B, T, M]."""
        _check_length(x, self.seq_len)
        x = x.transpose(1, 2)
        ends = (self.kernel_size - 1) // 2
        trend = F.avg_pool1d(F.pad(x, (ends, ends), mode="replicate"), self.kernel_size, stride=1)
        return (self.Linear_Seasonal(x - trend) + self.Linear_Trend(trend)).transpose(1, 2)


def _check_length(x: Tensor, seq_len: int) -> None:
    if x.shape[1] != seq_len:
        raise ZooError(
            f"a history of {x.shape[1]} steps was given, expected [B, L, M] with L = {seq_len}: "
            "build the model with another seq_len"
        )


@register_model(parameters=32_352)
def nlinear(**kwargs: Any) -> NLinear:
    """NLinear for 336 steps of history and 96 of forecast."""
    return NLinear(**kwargs)


@register_model(parameters=64_704)
def dlinear(**kwargs: Any) -> DLinear:
    """DLinear for 336 steps of history and 96 of forecast."""
    return DLinear(**kwargs)
