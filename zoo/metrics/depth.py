"""Errors of depth maps, as Eigen et al. (2014) introduced them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class DepthErrors(Metric):
    """Errors over all pixels with known depth.

    ``compute`` gives ``abs_rel``, the mean of |d - d'| / d; ``rmse``, in the unit of the depth;
    ``delta1`` to ``delta3``, the share of pixels with max(d/d', d'/d) below 1.25, 1.25², 1.25³.

    Args:
        minimum, maximum: only pixels whose true depth lies between count.
        align: first scale each map by the ratio of the medians, for networks that cannot know the
            scale.
    """

    full_state_update = False

    def __init__(
        self, minimum: float = 0.0, maximum: float = float("inf"), align: bool = False
    ) -> None:
        super().__init__()
        self.minimum, self.maximum, self.align = minimum, maximum, align
        for name in ("count", "relative", "square", "near1", "near2", "near3"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, depth: Tensor, target: Tensor) -> None:
        """Maps [..., H, W] twice; 0 in the target: unknown."""
        valid = (target > self.minimum) & (target < self.maximum)
        if self.align:
            depth = self._aligned(depth, target, valid)
        a, b = depth[valid].clamp(min=1e-9).double(), target[valid].double()
        self.count += a.numel()
        self.relative += ((a - b).abs() / b).sum()
        self.square += (a - b).square().sum()
        ratio = torch.maximum(a / b, b / a)
        self.near1 += (ratio < 1.25).sum()
        self.near2 += (ratio < 1.25**2).sum()
        self.near3 += (ratio < 1.25**3).sum()

    def _aligned(self, depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        none = torch.tensor(torch.nan, device=depth.device, dtype=depth.dtype)
        medians = [t.where(valid, none).flatten(-2).nanmedian(-1).values for t in (depth, target)]
        return depth * (medians[1] / medians[0])[..., None, None]

    def compute(self) -> dict[str, Tensor]:
        """All errors by name; nan if no pixel had depth."""
        return {
            "abs_rel": (self.relative / self.count).float(),
            "rmse": (self.square / self.count).sqrt().float(),
            "delta1": (self.near1 / self.count).float(),
            "delta2": (self.near2 / self.count).float(),
            "delta3": (self.near3 / self.count).float(),
        }
