"""Detection: the objects in a picture, their boxes, kinds and outlines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from zoo.data.vision.coco import COCO
from zoo.metrics.detection import AveragePrecision
from zoo.models.protocols import check_model
from zoo.models.vision._protocol import Detector
from zoo.plots.boxes import draw_objects
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores

_TARGETS = ("boxes", "labels", "masks", "iscrowd")


class Detection(DenseTask):
    """Objects in pictures, found by a :class:`zoo.models.vision._protocol.Detector`; batches are
    dictionaries of lists, see :class:`zoo.data.COCO`.

    The loss is the sum of the detector's: objectness and boxes of the proposals, classes, boxes and
    masks of the regions. Scores are COCO's, see :class:`AveragePrecision`; the best checkpoint is
    that of the highest average precision of boxes.

    Args:
        num_classes: kinds of objects in the data.
        shown_score: objects with a lower score are not drawn nor listed by ``predict``.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/ap"
    monitor_mode = "max"
    data_type, data_has, data_example = COCO, "objects", "zoo.data.COCO"

    def __init__(self, num_classes: int, shown_score: float = 0.5, **kwargs: Any) -> None:
        self.num_classes, self.shown_score = num_classes, shown_score
        super().__init__(**kwargs)

    @override
    def configure_models(self) -> None:
        self.model_args = {"num_classes": self.num_classes} | self.model_args
        super().configure_models()
        check_model(self.model, Detector, self.model_name, "mask_rcnn_vmamba_tiny")

    @override
    def configure_metrics(self, split: str) -> dict[str, Metric]:
        return {"ap": AveragePrecision(masks=self.model.masks)}

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Sum of the detector's losses."""
        losses: dict[str, Tensor] = self.model(batch["image"], _targets(batch))
        return torch.stack(list(losses.values())).sum()

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> list[dict[str, Tensor]]:
        """Scores of one batch; returns the objects of each picture."""
        found = [_outlined(objects) for objects in self.eval_model(batch["image"])]
        scores["ap"].update(found, _targets(batch))
        return found

    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """Truth and what was found."""
        picture = self.trainer.datamodule.to_display(batch["image"][index])
        return {
            "truth": self._drawn(picture, {name: batch[name][index] for name in _TARGETS}),
            "found": self._drawn(picture, self._shown_objects(predictions[index])),
        }

    def predict_image(self, image: Tensor, data: Any) -> dict[str, Tensor]:
        """Objects in a picture [3, H, W] in 0..1; the detector scales it."""
        found = self.eval_model([data.to_input(image).to(self.device)])[0]
        return self._shown_objects(_outlined(found))

    def show(self, picture: np.ndarray, output: dict[str, Tensor]) -> tuple[Panels, dict[str, Any]]:
        """The picture with its objects; their number, and a JSON list of them."""
        listed = [
            {"label": self.class_name(label), "score": round(score, 4),
             "box": [round(side, 1) for side in box]}
            for label, score, box in zip(
                output["labels"].tolist(), output["scores"].tolist(), output["boxes"].tolist(),
                strict=True,
            )
        ]  # fmt: skip
        columns = {"objects": len(listed), "found": json.dumps(listed)}
        return {"picture": picture, "result": self._drawn(picture, output)}, columns

    def _shown_objects(self, objects: dict[str, Tensor]) -> dict[str, Tensor]:
        sure = objects["scores"] >= self.shown_score
        return {name: value[sure] for name, value in objects.items()}

    def _drawn(self, picture: np.ndarray, objects: dict[str, Tensor]) -> np.ndarray:
        texts = [self.class_name(label) for label in objects["labels"].tolist()]
        if "scores" in objects:
            sure = objects["scores"].tolist()
            texts = [f"{text} {score:.2f}" for text, score in zip(texts, sure, strict=True)]
        boxes, masks = objects["boxes"], objects.get("masks")
        return draw_objects(picture, boxes, objects["labels"], texts, masks)


def _targets(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Lists by name -> a dictionary for each picture."""
    lists = [batch[name] for name in _TARGETS]
    return [dict(zip(_TARGETS, values, strict=True)) for values in zip(*lists, strict=True)]


def _outlined(objects: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks as yes and no."""
    if "masks" not in objects:
        return objects
    return objects | {"masks": objects["masks"] > 0.5}
