"""Scores of label maps: per picture, on boundaries, and per volume."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor
from torchmetrics import Metric

from zoo.losses.segmentation import IGNORE, boundary_band


class ImageIoU(Metric):
    """Intersection over union of class 1, for each picture, averaged; both empty counts 1."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Labels [B, H, W] twice."""
        valid = target != IGNORE
        a, b = (predicted == 1) & valid, (target == 1) & valid
        union = (a | b).sum((1, 2))
        iou = ((a & b).sum((1, 2)) / union.clamp(min=1)).where(union > 0, 1.0)
        self.total += iou.sum().double()
        self.count += len(iou)

    def compute(self) -> Tensor:
        """Mean over pictures."""
        return (self.total / self.count).float()


class BoundaryF1(ImageIoU):
    """F1 of class 1 within the band around the true boundary, for each picture, averaged.

    Args:
        width: of the band in pixels, odd.
    """

    def __init__(self, width: int = 15) -> None:
        super().__init__()
        self.width = width

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Labels [B, H, W] twice."""
        band = boundary_band(target, self.width) & (target != IGNORE)
        a, b = (predicted == 1) & band, (target == 1) & band
        size = a.sum((1, 2)) + b.sum((1, 2))
        f1 = (2 * (a & b).sum((1, 2)) / size.clamp(min=1)).where(size > 0, 1.0)
        self.total += f1.sum().double()
        self.count += len(f1)


class VolumeScores(Metric):
    """Dice overlap and 95 % Hausdorff distance of whole volumes, as TransUNet reports them.

    Mean over volumes and over classes 1 .. C-1. Where prediction and truth hold voxels of a class,
    both are measured; where the prediction alone does, Dice is 1 and the distance 0, else both
    are 0 (TransUNet's rule).

    Args:
        num_classes: C.
        spacing: of voxels (slice, row, column); distances are in its unit.
    """

    full_state_update = False

    def __init__(
        self, num_classes: int, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        self.num_classes, self.spacing = num_classes, spacing
        for name in ("dice", "hd95", "count"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Labels of one volume, [slices, H, W] twice."""
        a, b = (labels.cpu().numpy() for labels in (predicted, target))
        for label in range(1, self.num_classes):
            mine, truth = a == label, b == label
            if mine.any() and truth.any():
                self.dice += 2.0 * (mine & truth).sum() / (mine.sum() + truth.sum())
                self.hd95 += hausdorff95(mine, truth, self.spacing)
            elif mine.any():
                self.dice += 1.0
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """``dsc`` in 0..1 and ``hd95`` in the unit of the spacing."""
        return {"dsc": (self.dice / self.count).float(), "hd95": (self.hd95 / self.count).float()}


def hausdorff95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    """95th percentile of the distances from each surface to the other.

    Args:
        a, b: bool, any number of dimensions, neither empty.
        spacing: of the grid in each dimension.
    """
    surfaces = [mask & ~binary_erosion(mask) for mask in (a, b)]
    distances = [
        distance_transform_edt(~other, sampling=spacing)[one]
        for one, other in (surfaces, surfaces[::-1])
    ]
    return float(np.percentile(np.concatenate(distances), 95))
