"""What MEDFE's mutual block does, and the fill that any network must beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from zoo.data.base import DataModule
from zoo.data.formats.maps import MapDataModule
from zoo.plots.proofs import Pictures
from zoo.proofs.base import Measured
from zoo.proofs.trained import SHOWN, OfRecipe, Trained
from zoo.tasks.base import Task


class MutualBlock(Trained):
    """What the two branches of the mutual block hold, and what its equalisation does.

    Measures, beside the test's scores,

    - ``structure_share``: the share of test pictures whose smoothed copy is nearer (L1, at the
      branches' size) to what the structure branch shows than to what the texture branch shows;
    - ``gap``: how much the features that the block gives back to the decoder betray the hole: the
      difference of a feature's mean over the hole and over the known places, in standard deviations
      over the picture; mean over features and test pictures.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Look at both branches, and behind the equalisation, or where it would be."""
        features: list[Tensor] = []
        network = task.eval_model
        hook = network.mutual.base.register_forward_hook(lambda *call: features.append(call[-1]))
        gaps, nearer = [], []
        for batch in data.test_dataloader():
            _, *branches = network(batch["image"], batch["mask"])
            smoothed = interpolate(batch["structure"], branches[0].shape[-2:], mode="bilinear")
            structure, texture = ((b - smoothed).abs().mean((1, 2, 3)) for b in branches)
            nearer.append(structure < texture)
            x = features.pop()
            hole = interpolate(batch["mask"], size=x.shape[-2:], mode="area")
            means = [(x * w).sum((2, 3)) / w.sum((2, 3)) for w in (hole, 1 - hole)]
            gaps.append(((means[0] - means[1]).abs() / x.std((2, 3)).clamp(min=1e-6)).mean(1))
        hook.remove()
        return Measured(
            {
                "structure_share": float(torch.cat(nearer).float().mean()),
                "gap": float(torch.cat(gaps).mean()),
            }
        )


class MeanFill(OfRecipe):
    """``hole_l1`` on the test pictures when holes get the mean colour of the known pixels."""

    def measure(self, seed: int) -> Measured:
        """Fill the holes of all test pictures."""
        _, data = self.open(seed).build()
        assert isinstance(data, MapDataModule)
        data.setup("test")
        errors: list[float] = []
        pictures: list[Pictures] = []
        for batch in data.test_dataloader():
            image, mask = batch["image"], batch["mask"]
            known = 1 - mask
            mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
            error = ((mean - image).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
            errors += error.tolist()
            filled = image * known + mean * mask
            pictures += [{"filled": data.to_display(x)} for x in filled[: SHOWN - len(pictures)]]
        return Measured({"hole_l1": sum(errors) / len(errors)}, pictures=pictures)
