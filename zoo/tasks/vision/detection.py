"""Detection: the objects in a picture, their boxes, kinds and outlines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from zoo.data.base import DataModule
from zoo.data.vision.coco import COCO
from zoo.errors import ZooError
from zoo.metrics.detection import AveragePrecision
from zoo.plots.boxes import draw_objects
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask
from zoo.tasks.base import check_num_classes

_TARGETS = ("boxes", "labels", "masks", "iscrowd")


class Detection(DenseTask):
    """Objects in pictures; batches are dictionaries of lists, see :class:`zoo.data.COCO`.

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

    def __init__(self, num_classes: int, shown_score: float = 0.5, **kwargs: Any) -> None:
        self.num_classes, self.shown_score = num_classes, shown_score
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the detector for the data's classes."""
        self.model_args = {"num_classes": self.num_classes} | self.model_args
        super().configure_models()

    def configure_losses(self) -> None:
        """The detector has its own."""

    def configure_metrics(self) -> None:
        """COCO's average precision."""
        self.set_scores({"ap": AveragePrecision(masks=self.model.masks)})

    def check_data(self, data: DataModule) -> None:
        """The data must have boxes, and the task's number of classes."""
        if not isinstance(data, COCO):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no objects, expected a class such as "
                "zoo.data.vision.coco.COCO"
            )
        names = data.class_names
        check_num_classes(self.num_classes, names, "kinds of objects")
        self.class_names = names

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Sum of the detector's losses."""
        losses: dict[str, Tensor] = self.model(batch["image"], _targets(batch))
        return torch.stack(list(losses.values())).sum()

    def evaluate(self, batch: dict[str, Any], scores: MetricCollection) -> list[dict[str, Tensor]]:
        """Scores of one batch; returns the objects of each picture."""
        found = [_outlined(objects) for objects in self.eval_model(batch["image"])]
        scores.update(found, _targets(batch))
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
            {"label": self._name(label), "score": round(score, 4),
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

    def _name(self, label: int) -> str:
        return str(label) if self.class_names is None else self.class_names[label]

    def _drawn(self, picture: np.ndarray, objects: dict[str, Tensor]) -> np.ndarray:
        texts = [self._name(label) for label in objects["labels"].tolist()]
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
