"""SINet's information blocking: where low-level detail passes, and what that spares."""

from __future__ import annotations

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

from zoo.data.base import DataModule
from zoo.data.dense.portraits import Portraits
from zoo.losses.segmentation import boundary_band
from zoo.plots.panels import overlay
from zoo.plots.proofs import Pictures
from zoo.proofs.base import Measured
from zoo.proofs.trained import SHOWN, Trained
from zoo.tasks.base import Task


class Blocking(Trained):
    """SINet's errors and its gate on the test pictures.

    Measures, beside the test's scores,

    - ``gate_ratio``: the mean gate in the band of 7 pixels around boundaries over that elsewhere;
    - ``interior_error``: the share of wrong pixels among those more than 6 pixels from a boundary;
    - ``foreign_interior_error``: the same when the low-level detail is that of another picture, so
      that it says nothing true.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Look at gate and errors."""
        assert isinstance(data, Portraits)
        pictures: list[Pictures] = []
        near, elsewhere = torch.zeros(2), torch.zeros(2)
        wrong, interior = torch.zeros(2), 0
        for batch in data.test_dataloader():
            mask = batch["mask"]
            network = task.eval_model
            detail, coarse = network.encoder.features(batch["image"])
            logits, gate = network.combine(detail, coarse)
            foreign, _ = network.combine(detail.roll(1, 0), coarse)
            gate = interpolate(gate, size=mask.shape[-2:])[:, 0]
            band = boundary_band(mask, 7)
            near += torch.stack([gate[band].sum(), band.sum()])
            elsewhere += torch.stack([gate[~band].sum(), (~band).sum()])
            inside = _distance_to_boundary(mask) > 6
            found = torch.stack([logits.argmax(1), foreign.argmax(1)])
            wrong += ((found != mask) & inside).sum((1, 2, 3))
            interior += int(inside.sum())
            for index in range(min(SHOWN - len(pictures), len(mask))):
                picture = data.to_display(batch["image"][index])
                labels = foreign[index].argmax(0).numpy()
                pictures.append(
                    {
                        "picture": picture,
                        "gate": gate[index].numpy(),
                        "detail of another picture": overlay(picture, labels),
                    }
                )
        ratio = near[0] / near[1] / (elsewhere[0] / elsewhere[1])
        own, others = (wrong / interior).tolist()
        return Measured(
            {
                "gate_ratio": float(ratio),
                "interior_error": own,
                "foreign_interior_error": others,
            },
            pictures=pictures,
        )


def _distance_to_boundary(mask: Tensor) -> Tensor:
    """[B, H, W] of 0 and 1 -> distance of each pixel to the nearest one of the other class."""
    maps = []
    for one in mask.bool().cpu().numpy():
        inside, outside = distance_transform_edt(one), distance_transform_edt(~one)
        maps.append(torch.from_numpy(inside + outside))
    return torch.stack(maps)
