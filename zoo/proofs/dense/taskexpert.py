"""TaskExpert's assembly: what the gates depend on, and what the memory is for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.data.base import DataModule
from zoo.data.synthetic.mode_scenes import BACKGROUND
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task


class Assembly(Trained):
    """TaskExpert on scenes whose label map shows shapes or colours, as a mark in a corner says.

    Measures, beside the test's scores:

    - ``object_accuracy``: of labels on objects;
    - ``mode_distance``: half the absolute difference between the segmentation's mean gates in the
      two kinds of scenes, at the tap where it is largest;
    - ``task_distance``: the same between segmentation and depth;
    - with the memory's last reading replaced by zero, ``memory_change``: the largest difference of
      an output, and ``forgetful_accuracy``.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Look at gates and labels of the test scenes."""
        model = task.eval_model
        batches = list(data.test_dataloader())
        hits, modes = [], []
        labels: list[list[Tensor]] = [[] for _ in model.moe]
        depths: list[list[Tensor]] = [[] for _ in model.moe]
        outputs_before = []
        for batch in batches:
            outputs, gates = model.decode(batch["image"])
            outputs_before.append(outputs["semseg"])
            hits.append(_on_objects(outputs["semseg"], batch["semseg"]))
            # black or white in the middle of the mark
            modes.append(batch["image"][:, :, 3, 3].mean(1) < 0)
            for tap, weights in enumerate(gates):
                labels[tap].append(weights["semseg"])
                depths[tap].append(weights["depth"])
        mode = torch.cat(modes)
        by_tap = [(torch.cat(a), torch.cat(b)) for a, b in zip(labels, depths, strict=True)]
        values = {
            "object_accuracy": float(torch.cat(hits).float().mean()),
            "mode_distance": max(_distance(a[mode], a[~mode]) for a, _ in by_tap),
            "task_distance": max(_distance(a, b) for a, b in by_tap),
        }
        axes = Axes("Gates by tap", "tap", "distance of mean gates")
        taps = range(1, len(by_tap) + 1)
        curves = [
            Curve(axes, taps, [_distance(a[mode], a[~mode]) for a, _ in by_tap], "kinds of scenes"),
            Curve(axes, taps, [_distance(a, b) for a, b in by_tap], "tasks"),
        ]
        if not model.moe[-1].read:
            return Measured(values)
        model.moe[-1].read = nn.ModuleDict({name: _Zero() for name in model.tasks})
        hits, change = [], 0.0
        for batch, before in zip(batches, outputs_before, strict=True):
            output = model(batch["image"])["semseg"]
            hits.append(_on_objects(output, batch["semseg"]))
            change = max(change, float((output - before).abs().max()))
        values |= {
            "memory_change": change,
            "forgetful_accuracy": float(torch.cat(hits).float().mean()),
        }
        return Measured(values, curves)


class _Zero(nn.Module):
    """Forgets."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


def _on_objects(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the label of each pixel of an object is right."""
    objects = target < BACKGROUND
    return (logits.argmax(1) == target)[objects]


def _distance(a: Tensor, b: Tensor) -> float:
    """Total variation between mean gates of two sets of samples, [samples, choices]."""
    return float((a.mean(0) - b.mean(0)).abs().sum() / 2)
