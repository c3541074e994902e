"""Several dense tasks of one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad
from torchmetrics import MeanMetric, Metric

from zoo.data.base import DataModule
from zoo.data.dense.multi_task import MultiTaskDataModule
from zoo.errors import ZooError
from zoo.losses.multi_task import (
    balance_loss,
    balanced_label_loss,
    depth_loss,
    edge_loss,
    label_loss,
    normals_loss,
)
from zoo.losses.segmentation import IGNORE
from zoo.metrics.depth import DepthErrors
from zoo.metrics.multi_task import AngularError, EdgeODS, LabelIoU, MaxF, mean_gain
from zoo.plots.maps import coloured
from zoo.plots.panels import Panels, overlay
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores

#: Losses of the benchmarks, and their weights in MLoRE's and InvPT's recipes.
LOSSES = {
    "semseg": label_loss,
    "human_parts": label_loss,
    "sal": balanced_label_loss,
    "edge": edge_loss,
    "normals": normals_loss,
    "depth": depth_loss,
}
WEIGHTS = {
    "semseg": 1.0,
    "human_parts": 2.0,
    "sal": 5.0,
    "edge": 50.0,
    "normals": 10.0,
    "depth": 1.0,
}
#: Name of each task's score, and whether less of it is better.
SCORES = {
    "semseg": ("miou", False),
    "human_parts": ("miou", False),
    "sal": ("maxf", False),
    "edge": ("odsf", False),
    "normals": ("merr", True),
    "depth": ("rmse", True),
}


class MultiTask(DenseTask):
    """A network with one output for each task; batches as of :class:`MultiTaskDataModule`.

    Measures ``semseg_miou``, ``human_parts_miou``, ``sal_maxf``, ``normals_merr`` (degrees),
    ``depth_rmse`` (metres), each in 0..1 where no unit is named, and in the test ``edge_odsf`` and,
    with ``single``, the mean relative gain ``delta_m`` in percent.

    Args:
        loss_weights: of tasks, where they differ from the benchmarks'.
        edge_positive: weight of edge pixels; others have 1 - ``edge_positive``.
        balance_weight: of the experts' balance, for networks with gates.
        single: scores of networks of one task each, by the names above, to be compared with.
        max_depth: pixels beyond, in metres, are not scored.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has = MultiTaskDataModule, "labels of several tasks"
    data_example = "zoo.data.NYUD"

    def __init__(
        self,
        loss_weights: dict[str, float] | None = None,
        edge_positive: float = 0.95,
        balance_weight: float = 0.0,
        single: dict[str, float] | None = None,
        max_depth: float = 80.0,
        **kwargs: Any,
    ) -> None:
        self.loss_weights = WEIGHTS | (loss_weights or {})
        self.edge_positive, self.balance_weight = edge_positive, balance_weight
        self.single, self.max_depth = single or {}, max_depth
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network; its tasks must be known."""
        super().configure_models()
        self.outputs: dict[str, int] = self.model.tasks
        unknown = sorted(set(self.outputs) - set(LOSSES))
        if unknown:
            raise ZooError(
                f"model.init_args.model_args.tasks: {unknown[0]!r} has no loss, expected some of "
                + ", ".join(LOSSES)
            )
        names = {f"{task}_{SCORES[task][0]}" for task in self.outputs}
        if set(self.single) - names:
            raise ZooError(
                f"model.init_args.single: {sorted(set(self.single) - names)[0]!r} is not measured, "
                f"expected some of {', '.join(sorted(names))}"
            )

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """A loss and a score a task; validation leaves out that of edges, minutes of a CPU's
        time."""
        losses = {f"{task}_loss": MeanMetric() for task in self.outputs}
        measures = {
            task: self._measure(task, channels)
            for task, channels in self.outputs.items()
            if (split, task) != ("val", "edge")
        }
        return {"loss": MeanMetric(), **losses, **measures}

    def _measure(self, task: str, channels: int) -> Metric:
        match task:
            case "semseg" | "human_parts":
                return LabelIoU(channels)
            case "sal":
                return MaxF()
            case "normals":
                return AngularError()
            case "depth":
                return DepthErrors(maximum=self.max_depth)
        return EdgeODS()

    def check_data(self, data: DataModule) -> None:
        """The data must have labels for the network's tasks, with as many classes."""
        super().check_data(data)
        for task, channels in self.outputs.items():
            if task not in data.tasks:
                raise ZooError(
                    f"the network has the task {task!r}, of which the data have no labels; they "
                    f"have {', '.join(data.tasks)}: choose model.init_args.model_args.tasks"
                )
            if channels != data.outputs[task]:
                raise ZooError(
                    f"model.init_args.model_args.tasks: {task} has {channels} channels, expected "
                    f"the data's {data.outputs[task]}"
                )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> task -> [B, C, H, W]."""
        return self.eval_model(image)

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Weighted sum over tasks, and the balance of the experts if wanted."""
        if not self.balance_weight:
            return self._loss(self.model(batch["image"]), batch)
        outputs, gates = self.model.decode(batch["image"])
        return self._loss(outputs, batch) + self.balance_weight * balance_loss(gates)

    def _loss(self, outputs: Mapping[str, Tensor], batch: dict[str, Any]) -> Tensor:
        total = batch["image"].new_zeros(())
        for task, loss in self._task_losses(outputs, batch).items():
            total = total + self.loss_weights[task] * loss
        return total

    def _task_losses(
        self, outputs: Mapping[str, Tensor], batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        return {
            task: edge_loss(output, batch[task], self.edge_positive)
            if task == "edge"
            else LOSSES[task](output, batch[task])
            for task, output in outputs.items()
        }

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> dict[str, Tensor]:
        """Scores of one batch; returns the outputs."""
        outputs = self.eval_model(batch["image"])
        size = len(batch["image"])
        scores["loss"].update(self._loss(outputs, batch), size)
        for task, loss in self._task_losses(outputs, batch).items():
            scores[f"{task}_loss"].update(loss, size)
        for task, output in outputs.items():
            if task in scores:
                scores[task].update(output[:, 0] if task == "depth" else output, batch[task])
        return outputs

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """Losses, one score a task, and the mean gain over ``single``."""
        losses = {name: value for name, value in results.items() if name not in SCORES}
        values: dict[str, float] = {}
        for task in self.outputs.keys() & results.keys():
            score, value = SCORES[task][0], results[task]
            values[f"{task}_{score}"] = float(value[score] if task == "depth" else value)
        if self.single and set(self.single) <= set(values):
            lower = {f"{task}_{score}": less for task, (score, less) in SCORES.items()}
            values["delta_m"] = mean_gain(values, self.single, lower)
        return losses | values

    # pictures

    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """Picture, and truth and output of each task."""
        picture = self.trainer.datamodule.to_display(batch["image"][index])
        panels = {"picture": picture}
        for task, output in predictions.items():
            truth = batch[task][index].cpu()
            panels[f"{task}, true"] = _picture_of_truth(task, truth, picture)
            panels[task] = _picture(task, output[index].float().cpu(), picture)
        return panels

    def predict_image(self, image: Tensor, data: DataModule) -> dict[str, Tensor]:
        """Picture [3, H, W] in 0..1 -> outputs [1, C, H, W].

        A network that takes pictures of one size alone gets it shrunk until it fits, and padded.
        """
        size = image.shape[-2:]
        fixed = getattr(self.model, "fixed_size", None)
        if fixed is None:
            outputs = super().predict_image(image, data)
        else:
            factor = min(1.0, *(have / need for have, need in zip(fixed, size, strict=True)))
            shrunk = [max(1, int(side * factor)) for side in size]
            inputs = data.to_input(image)[None].to(self.device)
            inputs = interpolate(inputs, size=shrunk, mode="bilinear", antialias=True)
            rows, columns = (have - need for have, need in zip(fixed, shrunk, strict=True))
            padded = pad(inputs, (0, columns, 0, rows), mode="replicate")
            outputs = {
                task: output[..., : shrunk[0], : shrunk[1]]
                for task, output in self.eval_model(padded).items()
            }
        return {
            task: interpolate(output, size=size, mode="bilinear")
            for task, output in outputs.items()
        }

    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """What each task says; the share of each class, the mean depth."""
        panels, columns = {"picture": picture}, {}
        for task, maps in output.items():
            panels[task] = _picture(task, maps[0].float().cpu(), picture)
            if task == "semseg":
                share = np.bincount(maps[0].argmax(0).cpu().ravel(), minlength=len(maps[0]))
                columns["most frequent class"] = int(share.argmax())
            if task == "depth":
                columns["mean_depth"] = round(float(maps.mean()), 3)
        return panels, columns


def _picture(task: str, output: Tensor, picture: np.ndarray) -> np.ndarray:
    """Output [C, H, W] of a task as a picture."""
    if task in ("semseg", "human_parts"):
        return overlay(picture, output.argmax(0).numpy() + (task == "semseg"), 0.7)
    if task == "sal":
        return output.softmax(0)[1].numpy()
    if task == "edge":
        return output[0].sigmoid().numpy()
    if task == "normals":
        return _normals(normalize(output, dim=0))
    return coloured(output[0].numpy())


def _picture_of_truth(task: str, truth: Tensor, picture: np.ndarray) -> np.ndarray:
    if task in ("semseg", "human_parts"):
        labels = np.where(truth == IGNORE, 0, truth + (task == "semseg"))
        return overlay(picture, labels, 0.7)
    if task in ("sal", "edge"):
        return np.where(truth == IGNORE, 0.0, truth)
    return _normals(truth) if task == "normals" else coloured(truth.numpy())


def _normals(vectors: Tensor) -> np.ndarray:
    return ((vectors / 2 + 0.5).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
