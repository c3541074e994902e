"""Super-resolution by latent diffusion: base model, scale distillation, decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from typing_extensions import override

import zoo
from zoo.data.base import DataModule
from zoo.data.dense.super_resolution import SuperResolution as SuperResolutionData
from zoo.errors import ZooError
from zoo.losses.hinge_gan import adaptive_weight, hinge_discriminator
from zoo.losses.lpips import LPIPS
from zoo.models.dense.mutual_inpainting import PatchDiscriminator
from zoo.models.dense.yonos_sr import load_stable_diffusion, upsample
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores


@dataclass
class Stage:
    """One stage of the training.

    Args:
        train: ``autoencoder``: both its halves; ``unet``: the denoiser; ``decoder``: the
            autoencoder's decoder on the frozen denoiser's one-step answers.
        epochs: how long.
        scale: how many times smaller the picture is that conditions the denoiser.
        distil: learn from what the denoiser so far, frozen, answers for a picture of twice the
            size, instead of from the sharp one.
    """

    train: Literal["autoencoder", "unet", "decoder"]
    epochs: int
    scale: int = 4
    distil: bool = False


class SuperResolution(DenseTask):
    """Stages of a latent diffusion model for super-resolution; batches as of
    :class:`SuperResolutionData`.

    A stage takes the weights that the one before it left, or ``pretrained``; a distillation's
    teacher is the denoiser that its stage begins with. So a chain of scales may be one run or, each
    from the last one's checkpoint, several.

    Judged is one step at the last stage's scale: ``psnr`` and ``ssim`` on the luma of ITU-R BT.601
    without a border as wide as the scale; beside them ``bicubic_psnr`` and, what the autoencoder
    lets reach at best, ``autoencoder_psnr``; ``lpips`` where its weights are given.

    Args:
        stages: in order; the last goes on if the run is longer.
        steps: of DDIM, when pictures are judged or predicted.
        noisy_share: of the schedule, from its end of pure noise on, that the denoiser learns. One
            step starts at that end, so a short training may spend itself there; more steps need all
            of the schedule, 1.0.
        tile, overlap: of pictures, in pixels of the result.
        stable_diffusion: folder of Stable Diffusion v1 as diffusers stores it, to start from.
        vgg: torchvision's ImageNet weights of ``vgg16``, for LPIPS: file or URL; null: none.
        perceptual_weight: of LPIPS in the stages of autoencoder and decoder; unused without it.
        gan_weight: of the adversarial loss in the decoder's stage, beside the adaptive one.
        discriminator: arguments of its patch discriminator.
        kl_weight: of the latents' divergence from a normal distribution, in the first stage of an
            autoencoder of our own.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/psnr"
    monitor_mode = "max"
    data_type, data_has = SuperResolutionData, "small copies of pictures"
    data_example = "zoo.data.SuperResolution"

    def __init__(
        self,
        stages: Sequence[Stage],
        steps: int = 1,
        noisy_share: float = 1.0,
        tile: int = 512,
        overlap: int = 64,
        stable_diffusion: str | None = None,
        vgg: str | None = None,
        perceptual_weight: float = 1.0,
        gan_weight: float = 0.0,
        discriminator: dict[str, Any] | None = None,
        kl_weight: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        if not stages:
            raise ZooError("model.init_args.stages is empty, expected at least one stage")
        if not 0 < noisy_share <= 1:
            raise ZooError(
                f"model.init_args.noisy_share is {noisy_share}, expected more than 0, at most 1"
            )
        if steps > 1 and noisy_share < 1:
            raise ZooError(
                f"model.init_args.steps is {steps}, but noisy_share {noisy_share}: more than one "
                "step needs the whole schedule, noisy_share 1"
            )
        self.stages, self.steps, self.noisy_share = list(stages), steps, noisy_share
        self.tile, self.overlap = tile, overlap
        self.stable_diffusion, self.vgg = stable_diffusion, vgg
        self.perceptual_weight, self.gan_weight = perceptual_weight, gan_weight
        self.discriminator_args, self.kl_weight = discriminator or {}, kl_weight
        super().__init__(**kwargs)

    @property
    def scale(self) -> int:
        """At which is judged and predicted."""
        return self.stages[-1].scale

    def configure_models(self) -> None:
        """Build the networks, from Stable Diffusion if wanted."""
        super().configure_models()
        if self.stable_diffusion is not None and self.starts_fresh:
            load_stable_diffusion(self.model, self.stable_diffusion)
        self.teacher: nn.Module | None = None
        self.stage_of_teacher = -1

    def configure_losses(self) -> None:
        """LPIPS and discriminator where they are wanted."""
        self.lpips = None if self.vgg is None else LPIPS()
        self.lpips_loaded = False
        self.discriminator = None
        if self.gan_weight:
            self.discriminator = PatchDiscriminator(**self.discriminator_args)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.vgg is None or self.lpips_loaded:
            return
        if stage == "fit":  # a checkpoint to go on from has LPIPS's weights, one to evaluate not
            self.load_start(self.lpips, self.vgg)
        else:
            zoo.load_pretrained(self.lpips, self.vgg)
        self.lpips_loaded = True

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Means of what is measured a picture."""
        names = ["psnr", "ssim", "bicubic_psnr", "autoencoder_psnr"]
        names += ["lpips"] if self.vgg is not None else []
        return {name: MeanMetric() for name in names}

    def check_data(self, data: DataModule) -> None:
        """The data must have small copies at the scales of all stages."""
        super().check_data(data)
        needed = {s.scale // 2 for s in self.stages if s.distil}
        needed |= {s.scale for s in self.stages if s.train != "autoencoder"} | {self.scale}
        missing = sorted(needed - set(data.scales))
        if missing:
            raise ZooError(
                f"data.init_args.scales is {list(data.scales)}, but the stages need "
                f"{missing[0]} as well"
            )
        if data.size % self.model.stride:
            raise ZooError(
                f"data.init_args.size is {data.size}, expected a multiple of {self.model.stride}"
            )

    def forward(self, low: Tensor) -> Tensor:
        """Small pictures [B, 3, H, W] in -1..1 -> large ones, sharp, in -1..1."""
        return self.eval_model.enlarge(low, self.scale, self.steps, self.tile, self.overlap)

    # stages

    @property
    def has_unused_parameters(self) -> bool:
        """Each stage trains a part."""
        return True

    @property
    def stage(self) -> int:
        """Number of the stage that the present epoch belongs to."""
        end = 0
        for number, stage in enumerate(self.stages):
            end += stage.epochs
            if self.current_epoch < end:
                return number
        return len(self.stages) - 1

    @override
    def on_train_epoch_start(self) -> None:
        stage = self.stages[self.stage]
        model = self.model
        model.requires_grad_(False)
        for part in self._learning(stage):
            part.requires_grad_(True)
        if stage.distil and self.stage_of_teacher != self.stage:
            self.teacher = deepcopy(self.eval_model.unet).requires_grad_(False).eval()
            self.stage_of_teacher = self.stage

    def _learning(self, stage: Stage) -> Iterator[nn.Module]:
        if stage.train == "unet":
            yield self.model.unet
        elif stage.train == "autoencoder":
            yield self.model.vae
        else:
            yield from self.model.decoder_parts()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage_of_teacher"] = self.stage_of_teacher

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stage_of_teacher = checkpoint["stage_of_teacher"]
        if self.stage_of_teacher >= 0:  # its weights come with the others
            self.teacher = deepcopy(self.model.unet).requires_grad_(False).eval()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()), "weight_decay": 0.0})
        return groups

    # losses

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The stage's loss."""
        stage = self.stages[self.stage]
        if stage.train == "autoencoder":
            return self._autoencoder_loss(batch["image"])
        self._fit_latent_scale(batch["image"])
        if stage.train == "unet":
            return self.denoiser_loss(batch, stage)
        return self._decoder_loss(batch, stage)

    def _autoencoder_loss(self, image: Tensor) -> Tensor:
        output, divergence = self.model.autoencode(image)
        loss = l1_loss(output, image) + self.kl_weight * divergence
        return loss + self._perceptual_loss(output, image)

    def _perceptual_loss(self, output: Tensor, image: Tensor) -> Tensor:
        if self.lpips is None:
            return output.new_zeros(())
        return self.perceptual_weight * self.lpips(output, image).mean()

    @torch.no_grad()
    def _fit_latent_scale(self, image: Tensor) -> None:
        """After an autoencoder of our own: make its latents' variance 1, by the first batch."""
        number = self.stage
        fresh = number > 0 and self.stages[number - 1].train == "autoencoder"
        begins = self.current_epoch == sum(stage.epochs for stage in self.stages[:number])
        if fresh and begins and self.trainer.fit_loop.epoch_loop.batch_idx == 0:
            scale = self.model.latent_scale / self.model.encode(image).std()
            for model in {id(m): m for m in (self.model, self.eval_model)}.values():
                model.latent_scale.copy_(scale)

    def denoiser_loss(self, batch: dict[str, Any], stage: Stage) -> Tensor:
        """Weighted squared error of the clean latent, against the sharp one or the teacher's."""
        model, image = self.model, batch["image"]
        with torch.no_grad():
            target = model.encode(image)
            condition = model.encode(upsample(batch[f"low_{stage.scale}"], stage.scale))
        end = model.num_timesteps
        first = min(round((1 - self.noisy_share) * end), end - 1)
        t = torch.randint(first, end, (len(image),), device=image.device)
        noise = torch.randn_like(target)
        alpha, sigma = model.levels(t)
        noisy = alpha * target + sigma * noise
        if stage.distil:
            target = self._teachers_answer(batch, noisy, t, stage)
        error = model.denoise(noisy, condition, t).float() - target.float()
        # max(SNR, 1), which for small noise is what an error of v would weigh
        weight = (alpha / sigma).square().clamp(min=1)
        return (weight * error.square()).mean()

    @torch.no_grad()
    def _teachers_answer(
        self, batch: dict[str, Any], noisy: Tensor, t: Tensor, stage: Stage
    ) -> Tensor:
        """Of the same noisy latent, with a picture of twice the size beside it."""
        model, easier = self.model, stage.scale // 2
        condition = model.encode(upsample(batch[f"low_{easier}"], easier))
        assert self.teacher is not None
        self.teacher.eval()
        return model.denoise(noisy, condition, t, unet=self.teacher)

    def _decoder_loss(self, batch: dict[str, Any], stage: Stage) -> Tensor:
        """L1, LPIPS and hinge GAN of the decoded one-step answer."""
        model, image = self.model, batch["image"]
        with torch.no_grad():
            condition = model.encode(upsample(batch[f"low_{stage.scale}"], stage.scale))
            latent = model.sample(condition, torch.randn_like(condition))
        output = model.decode(latent)
        loss = l1_loss(output, image) + self._perceptual_loss(output, image)
        if self.discriminator is None:
            return loss
        self.discriminator.requires_grad_(False)
        adversarial = -self.discriminator(output).mean()
        weight = adaptive_weight(loss, adversarial, model.last_layer)
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(image), self.discriminator(output.detach())
        return loss + self.gan_weight * weight * adversarial + hinge_discriminator(real, fake)

    # scores

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> tuple[Tensor, Tensor]:
        """Scores of one batch; returns the result and the bicubic enlargement."""
        image = batch["image"]
        if f"low_{self.scale}" not in batch:
            raise ZooError(f"the test's pairs are of another scale than {self.scale}, the model's")
        low = batch[f"low_{self.scale}"]
        result, plain = self(low), upsample(low, self.scale)
        means = {"psnr": self.psnr(result, image), "bicubic_psnr": self.psnr(plain, image)}
        means["ssim"] = structural_similarity_index_measure(
            *(self._luma(p) for p in (result, image)), data_range=1.0
        )
        height, width = (side // self.model.factor * self.model.factor for side in image.shape[-2:])
        cut = image[..., :height, :width]
        model = self.eval_model
        means["autoencoder_psnr"] = self.psnr(model.decode(model.encode(cut)), cut)
        if self.lpips is not None:
            means["lpips"] = self.lpips(result, image).mean()
        for name, value in means.items():
            scores[name].update(value, len(image))
        return result, plain

    def _luma(self, picture: Tensor) -> Tensor:
        """Pictures in -1..1 -> luma in 0..1 without the border, [B, 1, H, W]."""
        border = self.scale
        pixels = (picture.clamp(-1, 1) + 1) / 2
        weights = pixels.new_tensor([65.481, 128.553, 24.966])[:, None, None]
        luma = ((pixels * weights).sum(1, keepdim=True) + 16) / 255
        return luma[..., border:-border, border:-border]

    def psnr(self, picture: Tensor, image: Tensor) -> Tensor:
        """Mean over pictures, on the luma without border; pictures in -1..1."""
        pair = (self._luma(p) for p in (picture, image))
        return peak_signal_noise_ratio(*pair, data_range=1.0, dim=(1, 2, 3))

    # pictures

    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """What went in, bicubic, the result, the truth."""
        show = self.trainer.datamodule.to_display
        result, plain = predictions
        return {
            "input": show(batch[f"low_{self.scale}"][index]),
            "bicubic": show(plain[index]),
            "result": show(result[index]),
            "truth": show(batch["image"][index]),
        }

    def predict_image(self, image: Tensor, data: DataModule) -> Tensor:
        """Picture [3, H, W] in 0..1 -> picture [3, scale H, scale W] in -1..1."""
        return self(data.to_input(image)[None].to(self.device))[0]

    def show(self, picture: np.ndarray, output: Tensor) -> tuple[Panels, dict[str, Any]]:
        """Input beside the result."""
        pixels = ((output.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy()
        height, width = pixels.shape[:2]
        return {"input": picture, "result": pixels}, {"width": width, "height": height}
