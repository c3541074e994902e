"""Where MEDUSA's heads look."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from zoo.data.base import DataModule
from zoo.data.dense.xrays import COVIDx
from zoo.data.formats.labels import read_mask
from zoo.plots.maps import coloured
from zoo.plots.proofs import Pictures
from zoo.proofs.base import Measured
from zoo.proofs.trained import SHOWN, Trained
from zoo.tasks.base import Task


class Looks(Trained):
    """A classifier with MEDUSA's body on the test pictures, for which there are lung masks.

    Measures, beside the test's scores, ``contrast``: how far the first two stages' attention inside
    the lungs differs from that outside, in standard deviations over the picture; mean over
    channels, stages and pictures.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Compare attention with lung masks."""
        assert isinstance(data, COVIDx)
        pictures: list[Pictures] = []
        contrasts = []
        for sample in data.source("test"):
            path = sample[2]
            lungs = read_mask(path.parents[2] / "masks" / "test" / path.name) == 1
            mask = torch.from_numpy(lungs.astype(np.float32))[None, None]
            image, _ = data.eval_transform(sample)
            looks = task.eval_model.attend(image[None])[1]
            if len(pictures) < SHOWN:
                panels = {"picture": data.to_display(image), "lungs": np.where(lungs, 1.0, 0.0)}
                for stage, attention in enumerate(looks, start=1):
                    panels[f"attention, stage {stage}"] = coloured(attention[0].mean(0).numpy())
                pictures.append(panels)
            for attention in looks[:2]:
                inside = interpolate(mask, size=attention.shape[-2:], mode="area")
                weights = inside / inside.sum(), (1 - inside) / (1 - inside).sum()
                means = [(attention * w).sum((2, 3)) for w in weights]
                spread = attention.std((2, 3)).clamp(min=1e-6)
                contrasts.append(((means[0] - means[1]).abs() / spread).mean())
        return Measured({"contrast": float(torch.stack(contrasts).mean())}, pictures=pictures)
