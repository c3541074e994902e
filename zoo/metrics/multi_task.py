"""Scores of the dense tasks as the multi-task benchmarks measure them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric

from zoo.losses.segmentation import IGNORE


class LabelIoU(Metric):
    """Mean intersection over union of all classes; a class that never occurs counts 0.

    Args:
        num_classes: classes.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.long)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Logits [B, C, H, W] and classes [B, H, W]."""
        valid = target != IGNORE
        pairs = target[valid] * self.num_classes + output.argmax(1)[valid]
        count = torch.bincount(pairs, minlength=self.num_classes**2)
        self.confusion += count.view(self.num_classes, -1)

    def compute(self) -> Tensor:
        """In 0..1."""
        hit = self.confusion.diag()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return (hit / union.clamp(min=1)).mean()


class MaxF(Metric):
    """Largest F score over thresholds 0.05 .. 0.95, precision weighted by beta² = 0.3.

    Over all pixels together. The benchmark's code squashes probabilities a second time before it
    compares them, so that of its thresholds 0.05 .. 0.95 four take part.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, beta_squared: float = 0.3) -> None:
        super().__init__()
        self.beta_squared = beta_squared
        self.register_buffer("thresholds", torch.arange(1, 20) / 20, persistent=False)
        for name in ("hit", "claimed", "actual"):
            zeros = torch.zeros(19, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Logits [B, 2, H, W] and classes [B, H, W]."""
        valid = target != IGNORE
        chance, truth = output.softmax(1)[:, 1][valid], target[valid] == 1
        claimed = chance >= self.thresholds[:, None]
        self.hit += (claimed & truth).sum(1)
        self.claimed += claimed.sum(1)
        self.actual += truth.sum()

    def compute(self) -> Tensor:
        """In 0..1."""
        precision = self.hit / self.claimed.clamp(min=1)
        recall = self.hit / self.actual.clamp(min=1)
        below = (self.beta_squared * precision + recall).clamp(min=1e-12)
        return ((1 + self.beta_squared) * precision * recall / below).max().float()


class AngularError(Metric):
    """Mean angle between normals, in degrees."""

    higher_is_better = False
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Vectors [B, 3, H, W] twice; 0 in the target: unknown."""
        valid = target.ne(0).any(1)
        a, b = normalize(output, dim=1), normalize(target, dim=1)
        angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
        self.total += angle[valid].rad2deg().sum()
        self.count += valid.sum()

    def compute(self) -> Tensor:
        """In 0..180."""
        return (self.total / self.count).float()


class EdgeODS(Metric):
    """F score of edges at the best threshold for the whole set (odsF), an approximation.

    The benchmark measures with SEISM's code for Matlab. As there, maps are thinned by non-maximum
    suppression across the edge, and a pixel is right if there is one of the other map within 0.75 %
    of the diagonal; but pixels are not paired one to one, which makes the score a little higher.

    Args:
        thresholds: how many, equally spaced.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, thresholds: int = 19) -> None:
        super().__init__()
        self.levels = np.arange(1, thresholds + 1) / (thresholds + 1)
        for name in ("right", "claimed", "found", "actual"):
            zeros = torch.zeros(thresholds, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Logits [B, 1, H, W] and edges [B, H, W], 0, 1 or 255."""
        for chance, truth in zip(output[:, 0].sigmoid().cpu(), target.cpu(), strict=True):
            valid = (truth != IGNORE).numpy()
            edges = (truth == 1).numpy()
            thin = _suppress(chance.float().numpy()) * valid
            reach = max(0.0075 * np.hypot(*edges.shape), 1.0)
            near_truth = _distance(edges) <= reach
            for i, level in enumerate(self.levels):
                claimed = thin >= level
                self.right[i] += int((claimed & near_truth).sum())
                self.claimed[i] += int(claimed.sum())
                self.found[i] += int((edges & (_distance(claimed) <= reach)).sum())
                self.actual[i] += int(edges.sum())

    def compute(self) -> Tensor:
        """In 0..1."""
        precision = self.right / self.claimed.clamp(min=1)
        recall = self.found / self.actual.clamp(min=1)
        return (2 * precision * recall / (precision + recall).clamp(min=1e-12)).max().float()


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest of the mask; infinite if that is empty."""
    return distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)


def _suppress(edges: np.ndarray) -> np.ndarray:
    """Zero where an edge map [H, W] is not largest among its neighbours across the edge."""
    smooth = gaussian_filter(edges, 1.0)
    gy, gx = np.gradient(smooth)
    gyy, gyx = np.gradient(gy)
    _, gxx = np.gradient(gx)
    # across a ridge the curvature is strongest: the eigenvector of the Hessian's lowest eigenvalue
    angle = 0.5 * np.arctan2(2 * gyx, gxx - gyy) + np.pi / 2
    y, x = np.mgrid[: edges.shape[0], : edges.shape[1]]
    across = np.array([np.sin(angle), np.cos(angle)])
    sides = [
        map_coordinates(smooth, np.array([y, x]) + s * across, order=1, mode="nearest")
        for s in (-1, 1)
    ]
    return np.where((smooth >= sides[0]) & (smooth >= sides[1]), edges, 0)


def mean_gain(
    scores: Mapping[str, float], single: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> float:
    """Mean relative gain over networks of one task each (Maninis et al. 2019), in percent.

    Args:
        scores, single: of the multi-task network and of the others, by the same names.
        lower_is_better: for each name.
    """
    gains = [
        (-1 if lower_is_better[name] else 1) * (scores[name] - value) / value
        for name, value in single.items()
    ]
    return 100 * sum(gains) / len(gains)
