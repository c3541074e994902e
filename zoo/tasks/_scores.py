"""The metrics of one split, over all processes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection


class Scores(nn.ModuleDict):
    """Metrics by name, updated batch by batch, computed and reset at the end of a split.

    Args:
        metrics: each a :class:`torchmetrics.Metric`, or a collection whose members are updated
            together.
    """

    def __init__(self, metrics: Mapping[str, Metric | MetricCollection]) -> None:
        super().__init__(dict(metrics))

    def compute(self) -> dict[str, Any]:
        """The results of the metrics that were updated on any process, by name."""
        counts = [sum(counted) for counted in zip(*gather(self._updates()), strict=True)]
        with warnings.catch_warnings():  # of no update on this process: another had one
            warnings.simplefilter("ignore")
            return {
                name: metric.compute()
                for (name, metric), count in zip(self.items(), counts, strict=True)
                if count
            }

    def reset(self) -> None:
        """Begin anew."""
        for metric in self.values():
            metric.reset()

    def _updates(self) -> list[int]:
        return [
            max((m.update_count for m in metric.modules() if isinstance(m, Metric)), default=0)
            for metric in self.values()
        ]


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results that are single numbers, by name; those of a metric with several by their own."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        if isinstance(result, Mapping):
            found |= numbers(result)
        elif not isinstance(result, Tensor) or result.numel() == 1:
            found[name] = result
    return found


def gather(value: Any) -> list[Any]:
    """What every process has, on every process, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
