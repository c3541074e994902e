"""YONOS-SR: super-resolution in one step and in many, the teacher's targets, the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import l1_loss

from zoo.data import DataModule
from zoo.models.dense.yonos_sr import YONOSSR, upsample
from zoo.proofs.fit import fit
from zoo.proofs.trained import Trained
from zoo.tasks import Task
from zoo.tasks.super_resolution import Stage, SuperResolution


class OneStep(Trained):
    """A recipe of super-resolution, looked at closer.

    Measures, beside the test's scores (of one step), ``many_psnr``: with ``steps`` of DDIM. Where
    the last stage distils, ``target_distance`` and ``truth_distance``: squared distance of the
    denoiser's answer at four fifths of the noise and more to the teacher's answer and to the sharp
    picture's latent. With ``decoder_steps`` the decoder is then trained on one-step latents:
    ``l1_before``, ``l1_after`` on the test pictures, and ``unet_changed``, the largest change of a
    weight of the denoiser.

    Args:
        recipe, overrides, seeds: see :class:`Trained`.
        steps: of DDIM.
        decoder_steps: updates of the decoder.
    """

    def __init__(
        self,
        recipe: str,
        overrides: dict[str, Any] | None = None,
        seeds: Sequence[int] = (0,),
        steps: int = 50,
        decoder_steps: int = 0,
    ) -> None:
        super().__init__(recipe, overrides, seeds)
        self.steps, self.decoder_steps = steps, decoder_steps

    def inspect(self, task: Task, data: DataModule) -> dict[str, float]:
        """More steps, targets, and the decoder's stage."""
        assert isinstance(task, SuperResolution)
        task.requires_grad_(False)
        measured = {"many_psnr": self._psnr(task, data)}
        if task.teacher is not None:
            measured |= _targets(task, data)
        if self.decoder_steps:
            measured |= self._tune_decoder(task, data)
        return measured

    def _psnr(self, task: SuperResolution, data: DataModule) -> float:
        scores = []
        for batch in data.test_dataloader():
            low, image = batch[f"low_{task.scale}"], batch["image"]
            result = task.eval_model.enlarge(low, task.scale, self.steps, task.tile, task.overlap)
            scores += [
                float(task.psnr(a[None], b[None])) for a, b in zip(result, image, strict=True)
            ]
        return sum(scores) / len(scores)

    def _tune_decoder(self, task: SuperResolution, data: DataModule) -> dict[str, float]:
        model: Any = task.model
        before = {name: value.clone() for name, value in model.unet.state_dict().items()}
        measured = {"l1_before": _l1(task, data)}
        task.stages = [Stage("decoder", 1, task.scale)]
        task.on_train_epoch_start()
        batches = list(data.train_dataloader())
        fit(
            model.vae.decoder,
            lambda step: task.training_loss(batches[step % len(batches)]),
            self.decoder_steps,
            lr=1e-3,
        )
        after = model.unet.state_dict()
        changed = max(float((after[name] - value).abs().max()) for name, value in before.items())
        return measured | {"l1_after": _l1(task, data), "unet_changed": changed}


@torch.inference_mode()
def _l1(task: SuperResolution, data: DataModule) -> float:
    errors = [l1_loss(task(b[f"low_{task.scale}"]), b["image"]) for b in data.test_dataloader()]
    return float(torch.stack(errors).mean())


@torch.inference_mode()
def _targets(task: SuperResolution, data: DataModule) -> dict[str, float]:
    """Distances of the student's answers to what it could have learnt from."""
    model: YONOSSR = task.eval_model  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    distances = []
    for batch in data.test_dataloader():
        truth = model.encode(batch["image"])
        conditions = [
            model.encode(upsample(batch[f"low_{s}"], s)) for s in (task.scale, task.scale // 2)
        ]
        low = int(0.8 * model.num_timesteps)
        t = torch.randint(low, model.num_timesteps, (len(truth),), generator=generator)
        alpha, sigma = model.levels(t)
        noisy = alpha * truth + sigma * torch.randn(truth.shape, generator=generator)
        mine = model.denoise(noisy, conditions[0], t)
        teachers = model.denoise(noisy, conditions[1], t, unet=task.teacher)
        distances.append([float((mine - z).square().mean()) for z in (teachers, truth)])
    means = [sum(column) / len(distances) for column in zip(*distances, strict=True)]
    return {"target_distance": means[0], "truth_distance": means[1]}
