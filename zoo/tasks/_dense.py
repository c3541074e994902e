"""What the tasks share whose output is a map: batches by name, sizes, pictures side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.maps import MapDataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.layers.sizes import at_any_size
from zoo.plots.panels import Panels, panel_rows
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DenseTask(ModelTask):
    """A network that answers a picture with maps.

    A subclass implements ``training_loss``, ``evaluate``, ``panels`` and ``show``.

    Args:
        encoder: without ``pretrained``: weights that ``model.encoder`` starts from, such as
            ImageNet's.
        args, kwargs: see :class:`ModelTask`.
    """

    data_type = MapDataModule
    input_suffixes = PICTURE_SUFFIXES
    shown_limit = 6
    #: A user's picture with a greater side is processed in overlapping tiles of this side.
    tile: ClassVar[int] = 2048

    def __init__(self, *args: Any, encoder: str | None = None, **kwargs: Any) -> None:
        self.encoder = encoder
        super().__init__(*args, **kwargs)

    @override
    def configure_models(self) -> None:
        super().configure_models()
        if self.pretrained is None and self.encoder is not None:
            self.load_start(self.model.encoder, self.encoder)

    @abstractmethod
    def panels(self, batch: dict[str, Any], predictions: Any, index: int) -> Panels:
        """One sample of a test batch as pictures."""

    @abstractmethod
    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """Result for a user's picture: panels, and columns of ``predictions.csv``. A panel named
        ``result`` is also written by itself.

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

    @override
    def examples(self, batch: dict[str, Any], outputs: Any) -> Iterator[Panels]:
        return (self.panels(batch, outputs, index) for index in range(self.count_samples(batch)))

    def figures(self) -> dict[str, Figure]:
        """Some samples of the test, side by side with the truth."""
        return {"examples": panel_rows(self.shown, "Test samples")} if self.shown else {}

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Apply the network to a picture file; the picture beside its result."""
        pixels = np.asarray(read_picture(source))
        image = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))
        output = self.predict_image(image, data)
        panels, columns = self.show(pixels, output)
        if "result" in panels:
            Image.fromarray(panels["result"]).save(f"{stem}_result.png")
        return columns, panel_rows([panels], source.name, self.write(output, stem))

    def write(self, output: Any, stem: Path) -> dict[str, np.ndarray] | None:
        """Write what a program would want of :meth:`predict_image`'s output, in files that begin
        with ``stem``; returns the names of the colours that :meth:`show` uses, if it uses any."""
        return None
