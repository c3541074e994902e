"""What change detection without learning can do: the difference of two pictures and a threshold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import DataModule
from zoo.metrics.change import BinaryChangeScores
from zoo.plots.panels import overlay
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.trained import SHOWN, OfRecipe

THRESHOLDS = 60


class Differencing(OfRecipe):
    """Change vector analysis: a pixel changed if its colours differ by more than a threshold.

    Pictures are first brought to one mean and deviation in each colour, which takes most of another
    light away. The threshold is the one that is best on the training pairs.

    Measures ``f1`` and its parts on the test pairs, and the ``threshold``.
    """

    def measure(self, seed: int) -> Measured:
        """Choose the threshold, then test."""
        _, data = self.open(seed).build()
        difference, truth = _differences(data, "train")
        choices = np.linspace(0, float(difference.max()), THRESHOLDS, endpoint=False)
        scores = [_f1(difference > choice, truth)["f1"] for choice in choices]
        threshold = float(choices[int(np.argmax(scores))])
        difference, truth = _differences(data, "test")
        axes = Axes("Threshold of the difference", "threshold", "F1 on the training pairs")
        changed = (difference > threshold).numpy()
        return Measured(
            _f1(difference > threshold, truth) | {"threshold": threshold},
            [Curve(axes, choices.tolist(), scores)],
            # in the colours of the network's maps
            [
                {"prediction": overlay(np.full((*one.shape, 3), 230, np.uint8), 1 * one, 1.0)}
                for one in changed[:SHOWN]
            ],
        )


def _differences(data: DataModule, split: str) -> tuple[Tensor, Tensor]:
    """Length of the colours' difference, and the truth, [N, H, W] each."""
    source = data.source(split)
    differences, truths = [], []
    for sample in (source[index] for index in range(len(source))):
        dates = [sample[name].as_subclass(Tensor).float() for name in ("pre", "post")]
        before, after = (
            (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True) for x in dates
        )
        differences.append((before - after).norm(dim=0))
        truths.append(sample["change"].as_subclass(Tensor).long())
    return torch.stack(differences), torch.stack(truths)


def _f1(changed: Tensor, truth: Tensor) -> dict[str, float]:
    scores = BinaryChangeScores()
    scores.update(changed.long(), truth)
    found = scores.compute()
    return {name: float(found[name]) for name in ("f1", "precision", "recall")}
