"""Image classification as timm's recipes train it: mixup, soft targets, top-1 and top-5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch
from timm.data import ImageNetInfo, Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.vision.images import ImageDataModule, ImageFolder
from zoo.errors import ZooError
from zoo.plots import annotated_picture, confusion_matrix, prediction_grid
from zoo.tasks.base import MODEL, Task, check_num_classes, check_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_MISTAKES, GRID_TOTAL = 8, 32
PREDICT_TOP = 5
IMAGENET_CLASSES = 1000


@dataclass
class MixupSettings:
    """Mixup and CutMix over a batch (timm's ``Mixup``).

    Args:
        mixup, cutmix: alpha of the beta distributions; 0 switches one off.
        prob: share of batches that are mixed; ``switch_prob``: share of these that take CutMix.
        mode: one mixing weight per batch, or per pair, or per element.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"


class ImageClassification(Task):
    """One class per image.

    Args:
        model: name of a model, ``python -m zoo.list`` shows them; any of timm's will do.
        num_classes: number of classes; the data must have as many.
        model_args: arguments of the model beyond its published ones.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        label_smoothing: share of the target spread over all classes.
        mixup: settings, or null for none.
        kwargs: see :class:`Task`.
    """

    monitor = "val/acc1"
    monitor_mode = "max"
    input_suffixes = PICTURE_SUFFIXES

    def __init__(
        self,
        model: str,
        num_classes: int,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        label_smoothing: float = 0.1,
        mixup: MixupSettings | None = None,
        **kwargs: Any,
    ) -> None:
        check_several(num_classes)
        self.model_name, self.model_args = model, model_args or {}
        self.num_classes, self.pretrained = num_classes, pretrained
        self.label_smoothing, self.mixup_settings = label_smoothing, mixup
        self.class_names = [str(number) for number in range(num_classes)]
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, with the given weights."""
        build = timm.create_model if timm.is_model(self.model_name) else zoo.create_model
        with blaming(MODEL):
            self.model = build(self.model_name, num_classes=self.num_classes, **self.model_args)
        if self.pretrained is not None:
            zoo.load_pretrained(self.model, self.pretrained)

    def configure_losses(self) -> None:
        """Cross-entropy; with mixup its targets are smoothed distributions."""
        settings = self.mixup_settings
        self.mixup = settings and Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.prob,
            switch_prob=settings.switch_prob,
            mode=settings.mode,
            label_smoothing=self.label_smoothing,
            num_classes=self.num_classes,
        )
        self.train_criterion = nn.CrossEntropyLoss(
            label_smoothing=0.0 if self.mixup else self.label_smoothing
        )
        self.eval_criterion = nn.CrossEntropyLoss()

    def configure_metrics(self) -> None:
        """Loss, top-1 and top-5 accuracy; in the test the confusion matrix as well."""
        metrics: dict[str, Any] = {
            f"acc{k}": MulticlassAccuracy(self.num_classes, top_k=k, average="micro")
            for k in (1, 5)
            if k < self.num_classes
        }
        scores = MetricCollection(metrics)
        self.val_scores, self.test_scores = scores.clone("val/"), scores.clone("test/")
        self.eval_loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(self.num_classes)
        self._shown: list[tuple[Tensor, int, int]] = []
        self._mistakes: list[tuple[Tensor, int, int]] = []

    def check_data(self, data: DataModule) -> None:
        """The data must have the task's number of classes."""
        if not isinstance(data, ImageDataModule):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no labelled images, "
                "expected a class such as zoo.data.ImageFolder"
            )
        self.class_names = list(data.class_names)
        check_num_classes(self.num_classes, self.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes] of the judged model."""
        return self.eval_model(images)

    def default_data(self) -> ImageDataModule:
        """How the model's published weights want their images; sets ImageNet's class names."""
        config = timm.data.resolve_model_data_config(self.model)
        if self.num_classes == IMAGENET_CLASSES:
            info = ImageNetInfo("imagenet-1k")
            self.class_names = [
                info.index_to_description(i).split(",")[0] for i in range(IMAGENET_CLASSES)
            ]
        return ImageFolder(
            root="",
            image_size=config["input_size"][-1],
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            mean=config["mean"],
            std=config["std"],
        )

    # steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mix, predict, compare."""
        images, targets = batch
        if self.mixup:
            if len(images) % 2:
                raise ZooError(
                    f"data.init_args.batch_size leaves {len(images)} samples to each process, "
                    "mixup needs an even number"
                )
            images, targets = self.mixup(images, targets)
        loss = self.train_criterion(self.model(images), targets)
        return self.log_loss(loss, len(images))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(batch, self.val_scores)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one batch, and keep some pictures to show."""
        images, targets = batch
        predicted = self._evaluate(batch, self.test_scores).argmax(dim=1)
        self.confusion.update(predicted, targets)
        for image, truth, guess in zip(images, targets.tolist(), predicted.tolist(), strict=True):
            kept, limit = (
                (self._shown, GRID_TOTAL) if truth == guess else (self._mistakes, GRID_MISTAKES)
            )
            if len(kept) < limit:
                kept.append((image.cpu(), truth, guess))

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_start(self) -> None:
        """Forget the pictures of an earlier test."""
        self._shown, self._mistakes = [], []
        self.confusion.reset()

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self._log_scores("test", self.test_scores)

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        images, targets = batch
        logits = self(images)
        scores.update(logits, targets)
        self.eval_loss.update(self.eval_criterion(logits, targets), len(images))
        return logits

    def _log_scores(self, split: str, scores: MetricCollection) -> None:
        self.log(f"{split}/loss", self.eval_loss.compute())
        self.log_dict(scores.compute(), prog_bar=True)
        self.eval_loss.reset()
        scores.reset()

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Confusion matrix and a grid of test pictures, mistakes first."""
        samples = [*self._mistakes, *self._shown][:GRID_TOTAL]
        names = self.class_names
        assert isinstance(self.data, ImageDataModule)
        to_display = self.data.to_display
        counts = self.confusion.compute().cpu().numpy()
        wrong = int(counts.sum() - counts.trace())
        return {
            "confusion_matrix": confusion_matrix(counts, names),
            "predictions": prediction_grid(
                [
                    (to_display(image), names[truth], names[guess])
                    for image, truth, guess in samples
                ],
                title=f"Test pictures: {wrong:,} of {int(counts.sum()):,} wrong"
                + (f" ({len(self._mistakes)} of them shown)" if wrong else ""),
            ),
        }

    # files

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Classify picture files; writes each picture with its most likely classes."""
        names = self.class_names
        self.eval()
        rows = []
        for path in files:
            picture = read_picture(path)
            image, _ = data.eval_transform((picture, 0))
            scores = self(image[None].to(self.device))[0].float().softmax(0)
            best = scores.topk(min(PREDICT_TOP, len(names)))
            top = [(names[i], p) for p, i in zip(*map(Tensor.tolist, best), strict=True)]
            rows.append(
                {"file": str(path), "prediction": top[0][0], "probability": round(top[0][1], 6)}
            )
            for place, (name, probability) in enumerate(top[1:], start=2):
                rows[-1] |= {f"prediction{place}": name}
                rows[-1] |= {f"probability{place}": round(probability, 6)}
            annotated_picture(picture, top).savefig(folder / f"{len(rows):04d}_{path.stem}.png")
        return rows
