"""Segmentation: one class per pixel, of pictures or of the slices of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.maps import MapDataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.data.formats.volumes import NIFTI_SUFFIXES, open_volume, write_volume
from zoo.errors import ZooError
from zoo.layers.sizes import at_any_size
from zoo.losses.segmentation import (
    IGNORE,
    boundary_band,
    frequency_weights,
    lovasz_hinge,
    soft_dice_loss,
)
from zoo.metrics.segmentation import BoundaryF1, ImageIoU, VolumeScores
from zoo.plots.panels import Panels, colour_of, overlay, panel_rows
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores
from zoo.tasks.base import check_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: So many slices of a user's volume are drawn, those with the most of other classes than the first.
_SHOWN_SLICES = 3


@dataclass
class SegmentationLoss:
    """What is minimised.

    Args:
        base: cross-entropy, half cross-entropy and half soft Dice, or the Lovasz hinge (a network
            with one output channel).
        boundary_weight: of the same loss within the band around boundaries; ``boundary_width``:
            of the band in pixels, odd.
        class_weights: of cross-entropy; ``frequency``: 1 / ln(1.10 + share of the class), from the
            first training batches.
        aux_weight: of the loss of a second, coarser output that some networks give in training.
    """

    base: Literal["ce", "ce_dice", "lovasz"] = "ce"
    boundary_weight: float = 0.0
    boundary_width: int = 15
    class_weights: Literal["none", "frequency"] = "none"
    aux_weight: float = 0.25


class Segmentation(DenseTask):
    """One class per pixel; batches of ``image`` [B, C, H, W] and ``mask`` [B, H, W] (255: ignored).

    A batch with ``volume`` (its number, slices in order) is also scored per volume in the test. A
    user's NIfTI file is answered with one, in the numbers that the training data have.

    Args:
        num_classes: classes of the data.
        loss: see :class:`SegmentationLoss`.
        encoder_epochs: so many epochs first train ``model.encoder`` alone against reduced labels.
        encoder_boundary_width: of the band in that stage.
        spacing: of voxels (slice, row, column), for distances in volumes.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/miou"
    monitor_mode = "max"
    data_has, data_example = "label maps", "zoo.data.Portraits"
    sample_keys = ("image", "mask")
    input_suffixes = PICTURE_SUFFIXES | {*NIFTI_SUFFIXES}

    def __init__(
        self,
        num_classes: int,
        loss: SegmentationLoss | None = None,
        encoder_epochs: int = 0,
        encoder_boundary_width: int = 5,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        **kwargs: Any,
    ) -> None:
        check_several(num_classes)
        self.num_classes, self.loss_settings = num_classes, loss or SegmentationLoss()
        self.encoder_epochs = encoder_epochs
        self.encoder_boundary_width = encoder_boundary_width
        self.spacing = spacing
        super().__init__(**kwargs)

    @override
    def configure_models(self) -> None:
        outputs = 1 if self.loss_settings.base == "lovasz" else self.num_classes
        self.model_args = {"num_classes": outputs} | self.model_args
        super().configure_models()

    def configure_losses(self) -> None:
        """Class weights, if any, are counted when the first batch comes."""
        self.register_buffer("pixels", torch.zeros(self.num_classes, dtype=torch.int64))

    def configure_metrics(self, split: str) -> dict[str, Metric | MetricCollection]:
        """Mean IoU; of two classes IoU and boundary F1 per picture; in the test also volumes."""
        scores: dict[str, Any] = {
            "miou": MulticlassJaccardIndex(self.num_classes, ignore_index=IGNORE)
        }
        if self.num_classes == 2:
            scores |= {"iou": ImageIoU(), "boundary_f1": BoundaryF1()}
        metrics = {"loss": MeanMetric(), "pixels": MetricCollection(scores)}
        if split == "test":
            metrics["volumes"] = VolumeScores(self.num_classes, self.spacing)
        return metrics

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> class of each pixel [B, H, W]."""
        return self._labels(self.eval_model(image), image.shape[-2:])

    def _labels(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        logits = self._to_size(logits, size)
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)

    def _to_size(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if logits.shape[-2:] == tuple(size):
            return logits
        return interpolate(logits, size=tuple(size), mode="bilinear")

    @property
    def has_unused_parameters(self) -> bool:
        """The encoder may come first."""
        return self.encoder_epochs > 0

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of the whole network, or of its encoder in the first stage."""
        image, mask = batch["image"], batch["mask"]
        settings = self.loss_settings
        if settings.class_weights == "frequency" and self.global_step < 50:
            labels = mask[mask != IGNORE]
            self.pixels += torch.bincount(labels, minlength=self.num_classes)
        if self.current_epoch < self.encoder_epochs:
            logits = self.model.encoder(image)
            reduced = interpolate(mask[:, None].float(), size=logits.shape[-2:], mode="nearest")
            return self._loss(logits, reduced[:, 0].long(), self.encoder_boundary_width)
        output = self.model(image)
        if isinstance(output, Tensor):
            return self._loss(self._to_size(output, mask.shape[-2:]), mask)
        logits, coarse = (self._to_size(part, mask.shape[-2:]) for part in output)
        return self._loss(logits, mask) + settings.aux_weight * self._loss(coarse, mask)

    def _loss(self, logits: Tensor, mask: Tensor, width: int | None = None) -> Tensor:
        settings = self.loss_settings
        loss = self._base_loss(logits, mask)
        if settings.boundary_weight:
            band = boundary_band(mask, width or settings.boundary_width)
            edges = mask.where(band, IGNORE)
            if band.any():
                loss = loss + settings.boundary_weight * self._base_loss(logits, edges)
        return loss

    def _base_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        settings = self.loss_settings
        if settings.base == "lovasz":
            return lovasz_hinge(logits[:, 0], mask)
        weights = None
        if settings.class_weights == "frequency" and self.pixels.sum() > 0:
            weights = frequency_weights(self.pixels.double()).to(logits.dtype)
        ce = cross_entropy(logits, mask, weights, ignore_index=IGNORE)
        return ce if settings.base == "ce" else 0.5 * ce + 0.5 * soft_dice_loss(logits, mask)

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> Tensor:
        """Scores of one batch; returns the classes [B, H, W]."""
        mask = batch["mask"]
        logits = self._to_size(self.eval_model(batch["image"]), mask.shape[-2:])
        scores["loss"].update(self._loss(logits, mask), len(mask))
        labels = self._labels(logits, mask.shape[-2:])
        scores["pixels"].update(labels, mask)
        if "volumes" in scores and "volume" in batch:
            for volume, mine, truth in zip(
                batch["volume"].tolist(), labels.cpu(), mask.cpu(), strict=True
            ):
                if volume != self._volume[0]:
                    self._close_volume()
                    self._volume = (volume, [], [])
                self._volume[1].append(mine)
                self._volume[2].append(truth)
        return labels

    def _close_volume(self) -> None:
        _, mine, truth = self._volume
        if mine:
            self.scores["test"]["volumes"].update(torch.stack(mine), torch.stack(truth))
        self._volume = (None, [], [])

    @override
    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._volume: tuple[int | None, list[Tensor], list[Tensor]] = (None, [], [])

    @override
    def on_test_epoch_end(self) -> None:
        self._close_volume()
        super().on_test_epoch_end()

    def panels(self, batch: dict[str, Any], predictions: Tensor, index: int) -> Panels:
        """Picture, truth, prediction, and where they differ."""
        picture = self.trainer.datamodule.to_display(batch["image"][index])
        truth, mine = (t[index].cpu().numpy() for t in (batch["mask"], predictions))
        wrong = ((truth != mine) & (truth != IGNORE)).astype(int)
        return {
            "picture": picture,
            "truth": overlay(picture, np.where(truth == IGNORE, 0, truth)),
            "prediction": overlay(picture, mine),
            "wrong pixels": overlay(np.full_like(picture, 255), wrong, 1.0),
        }

    def predict_image(self, image: Tensor, data: MapDataModule) -> Tensor:
        """Picture in 0..1 -> classes [H, W].

        The network sees it in the size in which it saw its own data; the answer is resized back.
        """
        size = data.input_size(*image.shape[-2:])
        seen = image
        if size is not None:
            seen = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return self._labels(super().predict_image(seen, data), image.shape[-2:])[0]

    def show(self, picture: np.ndarray, output: Tensor) -> tuple[Panels, dict[str, Any]]:
        """The picture, coloured by its classes; the share of each class."""
        labels = output.cpu().numpy()
        return {"picture": picture, "result": overlay(picture, labels)}, self._shares(labels)

    @override
    def write(self, output: Tensor, stem: Path) -> dict[str, np.ndarray]:
        """The numbers of the classes, as a picture whose palette has their colours."""
        labels = output.cpu().numpy().astype(np.uint8)
        picture = Image.fromarray(labels, "P")
        colours = [np.zeros(3), *map(colour_of, range(1, self.num_classes))]
        picture.putpalette(np.concatenate(colours).astype(np.uint8).tolist())
        picture.save(f"{stem}_labels.png")
        return self._legend(labels)

    def _legend(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        there = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        return {self.class_name(number): colour_of(number) for number in there if number > 0}

    def _shares(self, labels: np.ndarray) -> dict[str, Any]:
        shares = np.bincount(labels.ravel(), minlength=self.num_classes) / labels.size
        return {
            f"share of {self.class_name(number)}": round(float(share), 4)
            for number, share in enumerate(shares)
        }

    @override
    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        if not source.name.lower().endswith(NIFTI_SUFFIXES):
            return super().predict_one(source, data, stem)
        if not hasattr(data, "volume_input"):
            raise ZooError(
                f"{source} is a volume, but this network has learnt pictures: expected a file "
                "such as PNG or JPEG"
            )
        volume = open_volume(source)
        classes = np.stack(
            [self._slice(one, volume.shape[:2]) for one in data.volume_input(volume)], axis=2
        )
        numbers = np.array(list(data.labels))
        write_volume(Path(f"{stem}_labels.nii.gz"), numbers[classes], volume)
        fullest = np.argsort(-(classes > 0).sum((0, 1)), kind="stable")[:_SHOWN_SLICES]
        rows = []
        for index in sorted(fullest.tolist()):
            picture = data.to_display(torch.tensor(volume.read(index).transpose(2, 0, 1)))
            rows.append({"slice": picture, "result": overlay(picture, classes[:, :, index])})
        return self._shares(classes), panel_rows(rows, source.name, self._legend(classes))

    def _slice(self, image: Tensor, size: Sequence[int]) -> np.ndarray:
        """A slice as the network sees it [C, S, S] -> classes in the size that it has."""
        image = image[None].to(self.device)
        logits = at_any_size(self.eval_model, image, self.stride, self.tile)
        return self._labels(logits, size)[0].cpu().numpy()
