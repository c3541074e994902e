"""PreludeNet's depth against the training videos' mean depth."""

from __future__ import annotations

import torch

from zoo.data.base import DataModule
from zoo.metrics.depth import DepthErrors
from zoo.proofs.base import Measured
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task


class DepthOfVideos(Trained):
    """The test's scores, and ``constant_abs_rel``: that of the mean depth of each pixel over the
    labelled training videos.
    """

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Score the mean."""
        source = data.source("train")
        depths = [source[i]["depth"][0] for i in range(len(source))]
        mean = torch.stack([depth.mean(0) for depth in depths if depth.any()]).mean(0)
        errors = DepthErrors()
        for batch in data.test_dataloader():
            target = batch["depth"][:, 0, 1:]
            errors.update(mean.expand_as(target), target)
        return Measured({"constant_abs_rel": float(errors.compute()["abs_rel"])})
