"""What the tasks share whose output is a map: batches by name, sizes, pictures side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

import zoo
from zoo.data.base import DataModule
from zoo.data.formats.maps import MapDataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.errors import ZooError
from zoo.layers.sizes import at_any_size
from zoo.plots.panels import Panels, panel_rows
from zoo.tasks.base import Task, build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6


class DenseTask(Task):
    """A network that answers a picture with maps.

    A subclass implements ``training_loss``, ``evaluate``, ``panels`` and ``show``.

    Args:
        model: name of a model, ``python -m zoo.list`` shows them.
        model_args: arguments of the model beyond its published ones.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        encoder: without ``pretrained``: weights that ``model.encoder`` starts from, such as
            ImageNet's.
        kwargs: see :class:`Task`.
    """

    input_suffixes = PICTURE_SUFFIXES
    #: A user's picture with a greater side is processed in overlapping tiles of this side.
    tile: ClassVar[int] = 2048

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        encoder: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained, self.encoder = pretrained, encoder
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, with the given weights."""
        self.model = build_model(self.model_name, self.model_args, self.pretrained)
        if self.pretrained is None and self.encoder is not None:
            zoo.load_pretrained(self.model.encoder, self.encoder)

    def set_scores(self, scores: dict[str, Metric]) -> None:
        """Measure these in validation and test."""
        collection = MetricCollection(dict(scores))
        self.val_scores, self.test_scores = collection.clone("val/"), collection.clone("test/")
        self.eval_loss = MeanMetric()
        self._shown: list[Panels] = []

    @abstractmethod
    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of one batch."""

    @abstractmethod
    def evaluate(self, batch: dict[str, Any], scores: MetricCollection) -> Any:
        """Update the scores (``self.eval_loss`` too) with one batch; returns the predictions."""

    @abstractmethod
    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """One sample of a test batch as pictures."""

    @abstractmethod
    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """Result for a user's picture: panels, and columns of ``predictions.csv``.

        Args:
            picture: uint8 [H, W, 3].
            output: what :meth:`predict_image` returned.
        """

    def predict_image(self, image: Tensor, data: DataModule) -> Any:
        """The network's answer to a picture [3, H, W] in 0..1 of any size, maps [1, C, h, w]."""
        inputs = data.to_input(image)[None].to(self.device)
        return at_any_size(self.eval_model, inputs, self.stride, self.tile)

    @property
    def stride(self) -> int:
        """The network takes multiples of this size."""
        return getattr(self.model, "stride", 1)

    # steps

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self.log_loss(self.training_loss(batch), _size(batch))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one batch."""
        self.evaluate(batch, self.val_scores)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one batch, and keep some samples to show."""
        predictions = self.evaluate(batch, self.test_scores)
        for index in range(min(_size(batch), SHOWN - len(self._shown))):
            self._shown.append(self.panels(batch, predictions, index))

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_start(self) -> None:
        """Forget the samples of an earlier test."""
        self._shown = []

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self._log_scores("test", self.test_scores)

    def _log_scores(self, split: str, scores: MetricCollection) -> None:
        if self.eval_loss.update_count:
            self.log(f"{split}/loss", self.eval_loss.compute())
            self.eval_loss.reset()
        best_by = self.monitor.partition("/")[2]  # the others are in the table of results
        for name, value in scores.compute().items():
            self.log(name, value, prog_bar=name == f"{split}/{best_by}")
        scores.reset()

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Some samples of the test, side by side with the truth."""
        return {"examples": panel_rows(self._shown, "Test samples")} if self._shown else {}

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Apply the network to picture files; writes each picture beside its result."""
        if not isinstance(data, MapDataModule):
            raise ZooError(f"{type(data).__name__} does not say how a picture becomes an input")
        if self.class_names is None:  # weights without names, such as published ones
            self.class_names = getattr(data, "class_names", None)
        self.eval()
        rows = []
        for number, path in enumerate(files, start=1):
            pixels = np.asarray(read_picture(path))
            image = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))
            panels, columns = self.show(pixels, self.predict_image(image, data))
            rows.append({"file": str(path), **columns})
            name = f"{number:04d}_{path.stem}"
            panel_rows([panels], path.name).savefig(folder / f"{name}.png")
            if "result" in panels:
                Image.fromarray(panels["result"]).save(folder / f"{name}_result.png")
        return rows


def _size(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))
