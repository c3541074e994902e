"""Crowd counting by density maps."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric
from typing_extensions import override

from zoo.data.dense.crowds import CrowdDataModule
from zoo.losses.counting import bayesian_loss, density_loss
from zoo.metrics.counting import GAME
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores


class CrowdCounting(DenseTask):
    """A density map whose sum is the count; batches as of :class:`CrowdDataModule`.

    Measures ``mae``, ``rmse`` (what the field's tables call MSE) and ``game2`` (in 16 cells).

    Args:
        loss: squared error of the density and cross-entropy of the attention, or the Bayesian loss
            on points.
        attention_weight: of the cross-entropy.
        vgg: torchvision's ImageNet weights of the encoder (``vgg16_bn``, ``vgg19``): file or URL;
            not looked at where ``pretrained`` gives all weights.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/mae"
    monitor_mode = "min"
    data_type, data_has = CrowdDataModule, "points to count"
    data_example = "zoo.data.ShanghaiTech"

    def __init__(
        self,
        loss: Literal["density", "bayesian"] = "density",
        attention_weight: float = 0.1,
        vgg: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.loss, self.attention_weight, self.vgg = loss, attention_weight, vgg
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, its encoder from ImageNet if wanted."""
        super().configure_models()
        if self.vgg is not None and self.pretrained is None:
            self.load_start(self.model.vgg, self.vgg)

    @override
    def configure_metrics(self, split: str) -> dict[str, Metric]:
        return {
            "loss": MeanMetric(),
            "mae": MeanAbsoluteError(),
            "rmse": MeanSquaredError(squared=False),
            "game2": GAME(2),
        }

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> density [B, 1, H/2, W/2]."""
        return self.eval_model(image)[0]

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The chosen loss."""
        return self._loss(*self.model(batch["image"]), batch)

    def _loss(self, density: Tensor, attention: Tensor | None, batch: dict[str, Any]) -> Tensor:
        if self.loss == "bayesian":
            return bayesian_loss(density, batch["points"], batch["visible"], batch["short_side"])
        return density_loss(
            density, batch["density"], attention, batch["attention"], self.attention_weight
        )

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> tuple[Tensor, Any]:
        """Errors of the counts; returns density and attention."""
        density, attention = self.eval_model(batch["image"])
        scores["loss"].update(self._loss(density, attention, batch), len(density))
        for name in ("mae", "rmse"):
            scores[name].update(density.sum((1, 2, 3)), batch["count"])
        scores["game2"].update(density, batch["density"])
        return density, attention

    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """Picture, true and estimated density with counts, attention."""
        density, attention = predictions
        panels = {
            "picture": self.trainer.datamodule.to_display(batch["image"][index]),
            "true density": _map(batch["density"][index]),
            "estimated density": _map(density[index]),
        }
        return panels | ({} if attention is None else {"attention": _map(attention[index])})

    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """Density beside the picture, and the count."""
        density = output[0][0]
        count = float(density.sum())
        return {"picture": picture, f"density, sum {count:.1f}": _map(density)}, {
            "count": round(count, 2)
        }


def _map(density: Tensor) -> np.ndarray:
    return density[0].detach().float().cpu().numpy()
