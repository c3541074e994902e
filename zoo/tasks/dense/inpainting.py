"""Inpainting: fill the holes of a picture."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from typing_extensions import override

from zoo.checkpoints import read_state_dict
from zoo.checkpoints.sources import locate
from zoo.data.base import DataModule
from zoo.data.dense.inpainting import Inpainting as InpaintingData
from zoo.data.formats.labels import read_mask
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.errors import ZooError
from zoo.layers.sizes import at_any_size
from zoo.losses.adversarial import VGGLoss, relativistic_lsgan
from zoo.models.dense.mutual_inpainting import PatchDiscriminator
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Names of mask files end so: ``photo.jpg`` has its holes in ``photo_mask.png``.
MASK_SUFFIX = "_mask"


class Inpainting(DenseTask):
    """A network that gets picture and hole mask; batches as of :class:`InpaintingData`.

    Scores are of the composed picture (holes filled, the rest as it was): ``psnr``, ``ssim``,
    ``l1``, and ``hole_l1`` within the holes alone, of pixels in -1..1; in the test also ``psnr``
    and ``l1`` for each tenth of the hole's share (``psnr_20_30``), and ``fid`` with ``inception``.

    Args:
        branch_weight: of the structure and texture images; 3 is what the authors' code amounts to.
        gan_weight: of the relativistic adversarial losses of the whole picture and of a crop; 0:
            none.
        perceptual_weight, style_weight: in feature maps of ``vgg``; unused without it.
        vgg: torchvision's ImageNet weights of ``vgg16``: a file or URL; null: no such losses.
        crop: side of the crop for the second discriminator.
        inception: torch-fidelity's file ``weights-inception-2015-12-05-6726825d.pth`` or its
            URL; null: no Frechet inception distance.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/hole_l1"
    monitor_mode = "min"
    data_type, data_has, data_example = InpaintingData, "holes to fill", "zoo.data.Inpainting"

    def __init__(
        self,
        branch_weight: float = 1.0,
        gan_weight: float = 0.2,
        perceptual_weight: float = 0.2,
        style_weight: float = 250.0,
        vgg: str | None = None,
        crop: int = 64,
        inception: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.branch_weight, self.gan_weight = branch_weight, gan_weight
        self.perceptual_weight, self.style_weight = perceptual_weight, style_weight
        self.vgg_source, self.crop, self.inception = vgg, crop, inception
        super().__init__(**kwargs)

    def configure_losses(self) -> None:
        """Discriminators and VGG where they are wanted."""
        count = 2 if self.gan_weight else 0
        self.discriminators = nn.ModuleList(PatchDiscriminator() for _ in range(count))
        self.vgg = None if self.vgg_source is None else VGGLoss()

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.vgg is not None:  # VGG is needed to train, and only then
            self.load_start(self.vgg, self.vgg_source)
        if self.inception is not None and "fid" not in self.scores["test"]:
            self.scores["test"]["fid"] = inception_distance(self.inception)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Scores of the composed picture; in the test by the share of the holes as well."""
        metrics: dict[str, Metric] = {
            "loss": MeanMetric(),
            "psnr": PeakSignalNoiseRatio(data_range=2.0),
            "ssim": StructuralSimilarityIndexMeasure(data_range=2.0),
            "l1": MeanMetric(),
            "hole_l1": MeanMetric(),
        }
        if split == "test":
            for low in range(0, 100, 10):
                for name in ("psnr", "l1"):
                    metrics[f"{name}_{low}_{low + 10}"] = MeanMetric()
        return metrics

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Picture [B, 3, H, W] and holes [B, 1, H, W] -> the picture with the holes filled."""
        return self.eval_model(image, mask)[0] * mask + image * (1 - mask)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if len(self.discriminators):
            groups.append({"params": list(self.discriminators.parameters()), "weight_decay": 0.0})
        return groups

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Generator's and discriminators' losses; gradients of each reach its own network alone."""
        image, mask = batch["image"], batch["mask"]
        output, *branches = self.model(image, mask)
        loss = l1_loss(output, image)
        loss = loss + self.branch_weight * self._branch_loss(branches, batch)
        if self.vgg is not None:
            content, style = self.vgg(output, image)
            loss = loss + self.perceptual_weight * content + self.style_weight * style
        if len(self.discriminators):
            loss = loss + self._adversarial_loss(output, image)
        return loss

    def _branch_loss(self, branches: Sequence[Tensor | None], batch: dict[str, Any]) -> Tensor:
        structure, texture = branches
        if structure is None or texture is None:
            return batch["image"].new_zeros(())
        wanted = [
            interpolate(batch[name], size=structure.shape[-2:], mode="bilinear")
            for name in ("structure", "image")
        ]
        return l1_loss(structure, wanted[0]) + l1_loss(texture, wanted[1])

    def _adversarial_loss(self, output: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        side = min(self.crop, height, width)
        top, left = (int(torch.randint(n - side + 1, ())) for n in (height, width))
        cut = (..., slice(top, top + side), slice(left, left + side))
        loss = image.new_zeros(())
        pairs = ((image, output), (image[cut], output[cut]))
        for discriminator, (real, fake) in zip(self.discriminators, pairs, strict=True):
            discriminator.requires_grad_(False)
            scores = discriminator(real), discriminator(fake)
            loss = loss + self.gan_weight * relativistic_lsgan(*scores, generator=True)
            discriminator.requires_grad_(True)
            scores = discriminator(real), discriminator(fake.detach())
            loss = loss + relativistic_lsgan(*scores, generator=False)
        return loss

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> Any:
        """Scores of the composed picture; returns it with structure and texture image."""
        image, mask = batch["image"], batch["mask"]
        output, *branches = self.eval_model(image, mask)
        filled = output * mask + image * (1 - mask)
        error = (filled - image).abs()
        scores["loss"].update(l1_loss(output, image), len(image))
        for name in ("psnr", "ssim"):
            scores[name].update(filled, image)
        scores["l1"].update(error.mean(), len(image))
        if mask.any():
            scores["hole_l1"].update(error.sum() / (3 * mask.sum()), mask.sum())
        if "fid" in scores:
            for pixels, real in ((image, True), (filled, False)):
                scores["fid"].update(((pixels + 1) / 2).clamp(0, 1), real=real)
        if "l1_0_10" in scores:
            for share, one in zip(mask.mean((1, 2, 3)), filled - image, strict=True):
                low = min(int(share * 10), 9) * 10
                scores[f"l1_{low}_{low + 10}"].update(one.abs().mean())
                psnr = 10 * torch.log10(4 / one.square().mean().clamp(min=1e-10))
                scores[f"psnr_{low}_{low + 10}"].update(psnr)
        return filled, *branches

    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """Holes, result, truth, and what the two branches say."""
        show = self.trainer.datamodule.to_display
        image, mask = batch["image"][index], batch["mask"][index]
        panels = {
            "with holes": show(image * (1 - mask) + mask),
            "filled": show(predictions[0][index]),
            "truth": show(image),
        }
        for name, branch in zip(("structure", "texture"), predictions[1:], strict=True):
            if branch is not None:
                panels[f"{name} branch"] = show(branch[index])
        return panels

    # files

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Path]:
        """Pictures; ``photo.jpg`` has its holes, white, in ``photo_mask.png``."""
        files = super().find_inputs(sources)
        pictures = [path for path in files if not path.stem.endswith(MASK_SUFFIX)]
        if not pictures:
            raise ZooError("only masks are given, expected pictures with their masks beside them")
        return pictures

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Fill the holes of a picture."""
        self._mask = _mask_of(source)
        return super().predict_one(source, data, stem)

    def predict_image(self, image: Tensor, data: DataModule) -> tuple[Tensor, Tensor]:
        """Picture in 0..1 -> the filled picture in 0..1, and the hole mask."""
        mask = self._mask
        if mask.shape[-2:] != image.shape[-2:]:
            raise ZooError(
                f"a mask of {tuple(mask.shape[-2:])} pixels for a picture of "
                f"{tuple(image.shape[-2:])}, expected the same size"
            )
        both = torch.cat([data.to_input(image), mask])[None].to(self.device)
        least = getattr(self.model, "least", 1)
        filled = at_any_size(
            lambda x: self(x[:, :3], x[:, 3:]), both, self.stride, self.tile, least=least
        )
        return (filled[0] + 1) / 2, mask

    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """The picture with its holes, and filled."""
        filled, mask = output
        result = (filled.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
        holes = mask[0].numpy() > 0
        white = np.where(holes[..., None], 255, picture).astype(np.uint8)
        return {"with holes": white, "result": result}, {"hole": round(float(holes.mean()), 4)}


def _mask_of(path: Path) -> Tensor:
    """The mask beside a picture, [1, H, W]."""
    found = sorted(
        other
        for other in path.parent.glob(f"{glob.escape(path.stem)}{MASK_SUFFIX}.*")
        if other.suffix.lower() in PICTURE_SUFFIXES
    )
    if not found:
        raise ZooError(
            f"{path}: no mask beside it, expected a grey picture {path.stem}{MASK_SUFFIX}.png, "
            "white where the holes are"
        )
    return torch.from_numpy((read_mask(found[0]) == 1).astype(np.float32))[None]


def inception_distance(weights: str) -> Metric:
    """Frechet inception distance of pictures in 0..1; the network's weights from a file or URL.

    Raises:
        ZooError: the file cannot be read or would run code, or a package is missing.
    """
    (path,) = locate(weights).files
    read_state_dict(path)  # torch-fidelity would run code that is in it
    try:
        return FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=str(path))
    except ModuleNotFoundError as error:
        raise ZooError(
            "model.init_args.inception needs torch-fidelity: pip install 'ssm-zoo[fid]'"
        ) from error
