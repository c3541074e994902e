"""Image classification as timm's recipes train it: mixup, soft targets, top-1 and top-5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
from PIL import Image
from timm.data import ImageNetInfo, Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.vision.images import ImageDataModule, ImageFolder
from zoo.errors import ZooError
from zoo.plots import annotated_picture, confusion_matrix, prediction_grid
from zoo.tasks._scores import Scores
from zoo.tasks.base import MODEL, ModelTask, check_several

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


class ImageClassification(ModelTask):
    """One class per image.

    Args:
        model: name of a model, ``python -m zoo.list`` shows them; any of timm's will do.
        num_classes: number of classes; the data must have as many.
        label_smoothing: share of the target spread over all classes.
        mixup: settings, or null for none.
        args, kwargs: see :class:`ModelTask`.
    """

    monitor = "val/acc1"
    monitor_mode = "max"
    data_type, data_has = ImageDataModule, "labelled images"
    data_example = "zoo.data.ImageFolder"
    input_suffixes = PICTURE_SUFFIXES

    def __init__(
        self,
        model: str,
        num_classes: int,
        *args: Any,
        label_smoothing: float = 0.1,
        mixup: MixupSettings | None = None,
        **kwargs: Any,
    ) -> None:
        check_several(num_classes)
        self.num_classes = num_classes
        self.label_smoothing, self.mixup_settings = label_smoothing, mixup
        super().__init__(model, *args, **kwargs)

    @override
    def configure_models(self) -> None:
        build = timm.create_model if timm.is_model(self.model_name) else zoo.create_model
        with blaming(MODEL):
            self.model = build(self.model_name, num_classes=self.num_classes, **self.model_args)
        self.load_start(self.model, self.pretrained)

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

    def configure_metrics(self, split: str) -> dict[str, Metric | MetricCollection]:
        """Loss, top-1 and top-5 accuracy; in the test the confusion matrix as well."""
        accuracies = {
            f"acc{k}": MulticlassAccuracy(self.num_classes, top_k=k, average="micro")
            for k in (1, 5)
            if k < self.num_classes
        }
        metrics = {"loss": MeanMetric(), "classes": MetricCollection(dict(accuracies))}
        if split == "test":
            metrics["confusion"] = MulticlassConfusionMatrix(self.num_classes)
        return metrics

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes] of the evaluated model."""
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

    def training_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mix, predict, compare."""
        images, targets = batch
        if self.mixup:
            if len(images) % 2:
                raise ZooError(
                    f"data.init_args.batch_size leaves {len(images)} samples to each process, "
                    "mixup needs an even number"
                )
            images, targets = self.mixup(images, targets)
        return self.train_criterion(self.model(images), targets)

    def evaluate(self, batch: tuple[Tensor, Tensor], scores: Scores) -> Tensor:
        """Measure one batch; returns the predicted classes [B]."""
        images, targets = batch
        logits = self(images)
        predicted = logits.argmax(dim=1)
        scores["loss"].update(self.eval_criterion(logits, targets), len(images))
        scores["classes"].update(logits, targets)
        if "confusion" in scores:
            scores["confusion"].update(predicted, targets)
        return predicted

    # pictures

    @override
    def keep_examples(self, batch: tuple[Tensor, Tensor], outputs: Tensor) -> None:
        """Take pictures with true and predicted class: all that is shown may be right, but not all
        wrong."""
        images, targets = batch
        for image, truth, guess in zip(images, targets.tolist(), outputs.tolist(), strict=True):
            limit = GRID_TOTAL if truth == guess else GRID_MISTAKES
            if sum((t == g) == (truth == guess) for _, t, g in self.shown) < limit:
                self.shown.append((image.cpu(), truth, guess))

    def shown_mistakes_first(self) -> Iterator[tuple[Tensor, int, int]]:
        """Pictures of the test with true and predicted class."""
        return iter(sorted(self.shown, key=lambda sample: sample[1] == sample[2]))

    def figures(self) -> dict[str, Figure]:
        """Confusion matrix and a grid of test pictures, mistakes first."""
        assert isinstance(self.data, ImageDataModule)
        to_display = self.data.to_display
        counts = self.results["confusion"].cpu().numpy()
        wrong = int(counts.sum() - counts.trace())
        samples = [
            (to_display(image), self.class_name(truth), self.class_name(guess))
            for image, truth, guess in self.shown_mistakes_first()
        ][:GRID_TOTAL]
        shown = sum(truth != guess for _, truth, guess in samples)
        title = f"Test pictures: {wrong:,} of {int(counts.sum()):,} wrong"
        names = [self.class_name(i) for i in range(self.num_classes)]
        return {
            "confusion_matrix": confusion_matrix(counts, names),
            "predictions": prediction_grid(
                samples, title + (f" ({shown} of them shown)" if wrong else "")
            ),
        }

    # files

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Classify a picture file; the picture with its most likely classes."""
        picture = read_picture(source)
        image, _ = data.eval_transform((picture, 0))
        image = image.to(self.device)
        scores = self(image[None])[0].float().softmax(0)
        best = scores.topk(min(PREDICT_TOP, len(scores)))
        top = [(self.class_name(i), p) for p, i in zip(*map(Tensor.tolist, best), strict=True)]
        columns = {"prediction": top[0][0], "probability": round(top[0][1], 6)}
        for place, (name, probability) in enumerate(top[1:], start=2):
            columns |= {f"prediction{place}": name, f"probability{place}": round(probability, 6)}
        further = self.further_figures(source, picture, image, top[0][0], data)
        for ending, figure in further.items():
            figure.savefig(f"{stem}_{ending}.png")
        return columns, annotated_picture(picture, top)

    def further_figures(
        self, source: Path, picture: Image.Image, image: Tensor, prediction: str, data: Any
    ) -> dict[str, Figure]:
        """More pictures of a prediction, by the ending of their file names.

        Args:
            source: the file.
            picture: what is in it.
            image: the same as the network's input [3, H, W].
            prediction: name of the class.
            data: shows inputs.
        """
        return {}
