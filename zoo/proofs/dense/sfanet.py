"""Counts of single pictures, and the counter that always answers the mean."""

from __future__ import annotations

import torch

from zoo.data.base import DataModule
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.trained import OfRecipe, Trained
from zoo.tasks.base import Task

COUNTS = Axes("Test pictures", "true number of people", "counted")


class ConstantCount(OfRecipe):
    """Error ``mae`` on the test pictures of the training pictures' mean count."""

    def measure(self, seed: int) -> Measured:
        """Count the points."""
        _, data = self.open(seed).build()
        train, test = (
            torch.tensor([float(len(sample["points"])) for sample in data.source(split)])
            for split in ("train", "test")
        )
        mean = train.mean()
        ends = [float(test.min()), float(test.max())]
        return Measured(
            {"mae": float((test - mean).abs().mean())},
            [
                Curve(COUNTS, ends, [float(mean)] * 2, "the training pictures' mean", "known"),
                Curve(COUNTS, ends, ends, "right", "known"),
            ],
        )


class Counts(Trained):
    """A counter's test, and its answer to each test picture."""

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Count in the test pictures once more."""
        truth, counts = [], []
        for batch in data.test_dataloader():
            truth += batch["count"].tolist()
            counts += task.eval_model(batch["image"])[0].sum((1, 2, 3)).tolist()
        return Measured({}, [Curve(COUNTS, truth, counts, style="points")])
