"""TrackSSM's decoder: its layers walk straight to the next box."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.data.base import DataModule
from zoo.plots.proofs import Axes, Curve, Pictures
from zoo.plots.tracks import draw_tracks
from zoo.proofs.base import Measured
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task
from zoo.tasks.tracking.tracking import Tracking


class Walk(Trained):
    """TrackSSM's test, and how its decoder layers move.

    Measures, beside the test's scores, ``detour``: the mean distance of the boxes after all layers
    but the last from their places on the straight way to the true next box, over the length of that
    way. A Kalman filter has no layers.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Look at the layers on validation windows, and at the tracks of a test clip."""
        assert isinstance(task, Tracking)
        pictures = [_tracks(task)]
        if task.motion_name == "kalman":
            return Measured({}, pictures=pictures)
        away, way = torch.zeros(()), torch.zeros(())
        gone: Any = 0.0
        data.setup("validate")
        for batch in data.val_dataloader():
            start, target = batch["condition"][:, -1, :4], batch["cur_bbox"]
            boxes: Tensor = task.eval_model(batch["condition"])
            share = torch.arange(1, len(boxes) + 1)[:, None, None] / len(boxes)
            places = start + share * (target - start)
            away += (boxes - places)[:-1].abs().mean(0).sum()
            way += (target - start).abs().sum()
            gone += (boxes - start).abs().mean(-1).sum(1)
        axes = Axes("Layers of the decoder", "layer", "way gone, share of the way to the next box")
        layers = range(len(gone) + 1)
        curves = [
            Curve(axes, layers, [0.0, *(4 * gone / way).tolist()]),
            Curve(axes, layers, [layer / len(gone) for layer in layers], "straight", "known"),
        ]
        return Measured({"detour": float(away / way)}, curves, pictures)


def _tracks(task: Tracking) -> Pictures:
    """The middle of the first test clip, with the tracks that lead there."""
    clip, tracks = task.shown[0]
    frame = clip.length // 2 + 1
    panels = {}
    for name, rows in (("true tracks", clip.truth), ("tracks", tracks)):
        picture = Image.new("RGB", (clip.width, clip.height), "white")
        draw_tracks(picture, rows, frame, trail=30)
        panels[name] = np.asarray(picture)
    return panels
