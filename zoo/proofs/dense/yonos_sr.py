"""What YONOS-SR's scale distillation and its decoder's last stage do."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from zoo.data.base import DataModule
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.trained import LEARNING, Trained, fit_recipe, open_recipe, shown
from zoo.tasks.base import Task
from zoo.tasks.dense.super_resolution import Stage, SuperResolution


class TargetNoise(Trained):
    """How noisy the gradients are with which a denoiser goes on from x2 to x4: towards sharp
    pictures, and towards its own answers for pictures of twice the size.

    The recipe's last stage trains a denoiser for x2. Measures, beside the test's scores,
    ``sharp_noise`` and ``distilled_noise``: mean squared distance of a training batch's gradient
    from the mean of all of them. Both see the same pictures, times and noise.
    """

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """One gradient for each training batch and target; no weight is changed."""
        assert isinstance(task, SuperResolution)
        task.teacher = deepcopy(task.eval_model.unet).requires_grad_(False)
        batches = list(data.train_dataloader())
        axes = Axes("Gradients by batch", "training batch", "distance from the mean, squared")
        noise, curves = {}, []
        for name, distil in (("sharp", False), ("distilled", True)):
            stage = Stage("unet", epochs=1, scale=4, distil=distil)
            gradients = []
            for number, batch in enumerate(batches):
                torch.manual_seed(number)
                gradients.append(_gradient(task, batch, stage))
            stacked = torch.stack(gradients)
            distances = (stacked - stacked.mean(0)).square().sum(1)
            noise[f"{name}_noise"] = float(distances.mean())
            curves.append(Curve(axes, range(len(batches)), distances.tolist(), f"{name} target"))
        return Measured(noise, curves)


def _gradient(task: SuperResolution, batch: dict[str, Tensor], stage: Stage) -> Tensor:
    parameters = list(task.model.unet.parameters())
    gradients = torch.autograd.grad(task.denoiser_loss(batch, stage), parameters)
    return parameters_to_vector(gradients)


class DecoderStage(Trained):
    """The recipe without its decoder's stage, and then that stage alone.

    Measures, beside the test's scores before that stage, ``l1_before`` and ``l1_after`` of the test
    pictures in one step, and ``denoiser_moved``: how far the denoiser's weights went at most.

    Args:
        stage: what the stage sets in the recipe beyond ``overrides``.
        kwargs: see :class:`Trained`.
    """

    def __init__(self, stage: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Train the decoder of a copy."""
        recipe = open_recipe(self.recipe, self.overrides | self.stage, data.seed)
        tuned, _ = recipe.build()
        tuned.model.load_state_dict(task.eval_model.state_dict())
        trainer, curves = fit_recipe(recipe, tuned, data)
        pictures = shown(task)
        trainer.test(tuned, datamodule=data, verbose=False)
        for row, after in zip(pictures, shown(tuned), strict=True):
            row["result, decoder trained"] = after["result"]
        pairs = zip(task.eval_model.unet.parameters(), tuned.model.unet.parameters(), strict=True)
        values = {
            "l1_before": _l1(task, data),
            "l1_after": _l1(tuned.eval(), data),
            "denoiser_moved": max(float((a - b).detach().abs().max()) for a, b in pairs),
        }
        stage = replace(LEARNING, title="Learning, the decoder's stage")
        return Measured(values, [replace(curve, axes=stage) for curve in curves], pictures)


@torch.inference_mode()
def _l1(task: Task, data: DataModule) -> float:
    """Mean distance of the test pictures, in -1..1, from what one step makes of small ones."""
    errors = []
    for batch in data.test_dataloader():
        errors += (task(batch[f"low_{task.scale}"]) - batch["image"]).abs().mean((1, 2, 3)).tolist()
    return sum(errors) / len(errors)
