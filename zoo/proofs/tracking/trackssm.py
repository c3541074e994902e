"""TrackSSM's decoder: its layers walk straight to the next box."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.data.base import DataModule
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task


class Walk(Trained):
    """TrackSSM's test, and how its decoder layers move.

    Measures, beside the test's scores, ``detour``: the mean distance of the boxes after all layers
    but the last from their places on the straight way to the true next box, over the length of that
    way.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> dict[str, float]:
        """Look at the layers on validation windows."""
        away, way = torch.zeros(()), torch.zeros(())
        data.setup("validate")
        for batch in data.val_dataloader():
            start, target = batch["condition"][:, -1, :4], batch["cur_bbox"]
            boxes: Tensor = task.eval_model(batch["condition"])
            share = torch.arange(1, len(boxes) + 1)[:, None, None] / len(boxes)
            places = start + share * (target - start)
            away += (boxes - places)[:-1].abs().mean(0).sum()
            way += (target - start).abs().sum()
        return {"detour": float(away / way)}
