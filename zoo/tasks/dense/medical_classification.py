"""Medical images: one class per image, sensitivity and predictive value of each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall
from torchmetrics.wrappers import ClasswiseWrapper
from typing_extensions import override

from zoo.errors import ZooError
from zoo.plots.panels import Panels, panel_rows
from zoo.tasks.vision.classification import ImageClassification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6


class MedicalClassification(ImageClassification):
    """Image classification that also measures each class, and can train MEDUSA's body first.

    Measures ``sensitivity_N`` (recall) and ``ppv_N`` (precision) of class number N.

    Args:
        body_epochs: so many epochs first train the body, with a pointwise convolution behind it, on
            lung masks (Dice and binary cross-entropy); the data must give masks. A network without
            a body trains as a whole from the start.
        body_lr_scale: factor of the learning rate of ``model.body`` after that.
        backbone: weights of the classifier's ResNet, such as torchvision's for ImageNet: file or
            URL; not looked at where ``pretrained`` gives all weights.
        kwargs: see :class:`ImageClassification`.
    """

    def __init__(
        self,
        body_epochs: int = 0,
        body_lr_scale: float = 0.1,
        backbone: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.body_epochs, self.body_lr_scale = body_epochs, body_lr_scale
        self.backbone_source = backbone
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, its classifier from ImageNet if wanted."""
        super().configure_models()
        if self.backbone_source is not None and self.pretrained is None:
            self.load_start(self.model.backbone, self.backbone_source)
        if not hasattr(self.model, "body"):
            self.body_epochs = 0
        self.lungs = None
        if self.body_epochs:
            self.lungs = nn.Conv2d(self.model.body.head.out_channels, 1, 1)

    def configure_metrics(self, split: str) -> dict[str, Metric | MetricCollection]:
        """Accuracy, and each class's scores."""
        metrics = super().configure_metrics(split)
        recall = MulticlassRecall(self.num_classes, average=None)
        precision = MulticlassPrecision(self.num_classes, average=None)
        metrics["classes"].add_metrics(
            {
                "sensitivity": ClasswiseWrapper(recall, prefix="sensitivity_"),
                "ppv": ClasswiseWrapper(precision, prefix="ppv_"),
            }
        )
        return metrics

    @property
    def has_unused_parameters(self) -> bool:
        """The body may come first."""
        return self.body_epochs > 0

    def training_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The body alone in its stage, then everything."""
        images, targets, *masks = batch
        if self.current_epoch >= self.body_epochs:
            if hasattr(self.model, "body"):
                self._slow_body_down()
            return super().training_loss((images, targets))
        if not masks:
            raise ZooError(
                "model.init_args.body_epochs: the data give no lung masks to train the body with; "
                "set it to 0, or put masks into masks/train"
            )
        logits = self.lungs(self.model.look(images))
        mask = interpolate(masks[0], size=logits.shape[-2:])
        chance = logits.sigmoid()
        dice = 1 - (2 * (chance * mask).sum() + 1) / (chance.sum() + mask.sum() + 1)
        return dice + binary_cross_entropy_with_logits(logits, mask)

    def _slow_body_down(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            if group.get("body") and "lr_scale" not in group:
                group["lr_scale"] = self.body_lr_scale
                group["lr"] *= self.body_lr_scale

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if not hasattr(self.model, "body"):
            return groups
        body = {id(p) for p in self.model.body.parameters()}
        split = []
        for group in groups:
            for inside in (True, False):
                members = [p for p in group["params"] if (id(p) in body) == inside]
                if members:
                    split.append({**group, "params": members, "body": inside})
        if self.lungs is not None:
            split.append({"params": list(self.lungs.parameters()), "body": False})
        return split

    @torch.inference_mode()
    def figures(self) -> dict[str, Figure]:
        """The classifier's figures, and where MEDUSA looks at each scale."""
        figures = super().figures()
        if not hasattr(self.model, "body"):
            return figures
        self.eval()
        to_display = self.trainer.datamodule.to_display
        samples = islice(self.shown_mistakes_first(), SHOWN)
        rows = [self._looks(image, to_display(image)) for image, *_ in samples]
        return figures | {"attention": panel_rows(rows, "Where the body and its heads look")}

    @override
    def further_figures(
        self, source: Path, picture: Image.Image, image: Tensor, prediction: str, data: Any
    ) -> dict[str, Figure]:
        if not hasattr(self.model, "body"):
            return {}
        return {"attention": panel_rows([self._looks(image, np.asarray(picture))], source.name)}

    def _looks(self, image: Tensor, picture: np.ndarray) -> Panels:
        """The picture, the body's answer, and each head's mean attention."""
        image = image[None].to(self.device)
        panels = {"picture": picture}
        panels["body"] = self.eval_model.look(image).mean(1)[0].sigmoid().cpu().numpy()
        for i, attention in enumerate(self.eval_model.attend(image)[1], start=1):
            panels[f"attention, stage {i}"] = attention.mean(1)[0].cpu().numpy()
        return panels
