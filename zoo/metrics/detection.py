"""Scores of found objects: COCO's average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from zoo.errors import ZooError

_NAMES = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
}


class AveragePrecision(MeanAveragePrecision):
    """COCO's average precision over IoU from 0.5 to 0.95, by its own implementation (pycocotools).

    ``compute`` gives ``ap``, ``ap50``, ``ap75`` and ``ap_small``, ``ap_medium``, ``ap_large`` (up
    to 32, up to 96 and more pixels of side; -1 where there are no such objects) of boxes, and the
    same as ``mask_ap`` and so on.

    Args:
        masks: score masks as well.

    Raises:
        ZooError: pycocotools is not installed.
    """

    def __init__(self, masks: bool) -> None:
        kinds: Sequence[str] = ("bbox", "segm") if masks else ("bbox",)
        try:
            with torch.device("cpu"):  # thresholds become lists: no meta tensors
                super().__init__(iou_type=tuple(kinds))
        except ModuleNotFoundError as error:
            raise ZooError(
                "average precision needs pycocotools: pip install 'ssm-zoo[detection]'"
            ) from error
        self.prefixes = {"bbox_": "", "segm_": "mask_"} if masks else {"": ""}

    def update(self, found: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
        """Objects of each picture, of a detector and true ones.

        Args:
            found: ``boxes`` [N, 4], ``scores`` [N], ``labels`` [N], and ``masks`` [N, H, W] bool.
            target: the same without scores; ``iscrowd`` [N]: groups that count as nothing.
        """
        super().update(found, target)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        scores = super().compute()
        return {
            mine + short: scores[theirs + name].to(torch.float32)
            for theirs, mine in self.prefixes.items()
            for name, short in _NAMES.items()
        }
