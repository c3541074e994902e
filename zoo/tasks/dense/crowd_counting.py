"""Crowd counting by density maps."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

import zoo
from zoo.data.base import DataModule
from zoo.data.dense.crowds import CrowdDataModule
from zoo.errors import ZooError
from zoo.losses.counting import bayesian_loss, density_loss
from zoo.metrics.counting import GAME
from zoo.plots.panels import Panels
from zoo.tasks._dense import DenseTask


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
            zoo.load_pretrained(self.model.vgg, self.vgg)

    def configure_losses(self) -> None:
        """Functions of zoo.losses.counting."""

    def configure_metrics(self) -> None:
        """Errors of the counts."""
        self.set_scores({"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)})
        self.val_game, self.test_game = GAME(2), GAME(2)

    def check_data(self, data: DataModule) -> None:
        """The data must have points."""
        if not isinstance(data, CrowdDataModule):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no points to count, expected a class "
                "such as zoo.data.dense.crowds.ShanghaiTech"
            )

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

    def evaluate(self, batch: dict[str, Any], scores: MetricCollection) -> tuple[Tensor, Any]:
        """Errors of the counts; returns density and attention."""
        density, attention = self.eval_model(batch["image"])
        self.eval_loss.update(self._loss(density, attention, batch), len(density))
        scores.update(density.sum((1, 2, 3)), batch["count"])
        game = self.test_game if self.trainer.testing else self.val_game
        game.update(density, batch["density"])
        return density, attention

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log_game("val", self.val_game)
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self._log_game("test", self.test_game)
        super().on_test_epoch_end()

    def _log_game(self, split: str, game: GAME) -> None:
        self.log(f"{split}/game2", game.compute())
        game.reset()

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
