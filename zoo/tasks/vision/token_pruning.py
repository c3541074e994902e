"""Classification by a network that drops patches: the same, with pictures of those it kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import DataModule
from zoo.data.formats.pictures import read_picture
from zoo.data.vision.images import ImageDataModule
from zoo.errors import ZooError
from zoo.plots.kept_patches import kept_patches
from zoo.tasks.vision.classification import ImageClassification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6


class PrunedClassification(ImageClassification):
    """One class per image, by a model such as ``token_pruning_vim_small``.

    Args:
        kwargs: see :class:`ImageClassification`.
    """

    def configure_models(self) -> None:
        """Build the network; it must say which patches it keeps."""
        super().configure_models()
        if not hasattr(self.model, "kept_patches"):
            raise ZooError(
                f"model.init_args.model: {self.model_name} drops no patches, expected a model such "
                "as token_pruning_vim_small"
            )

    def figures(self) -> dict[str, Figure]:
        """Also the patches that were kept of some test pictures."""
        figures = super().figures()
        samples = [*self._mistakes[:1], *self._shown][:SHOWN]
        assert isinstance(self.data, ImageDataModule)
        rows = []
        for image, truth, guess in samples:
            text = f"{self.class_names[guess]} (true: {self.class_names[truth]})"
            rows.append((self.data.to_display(image), self._kept(image), text))
        if rows:
            figures["kept_patches"] = kept_patches(rows, "Patches that were kept")
        return figures

    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Classify picture files; also writes which patches of each were kept."""
        rows = super().predict_files(files, data, folder)
        assert isinstance(data, ImageDataModule)
        for number, (path, row) in enumerate(zip(files, rows, strict=True), start=1):
            image, _ = data.eval_transform((read_picture(path), 0))
            shown = (data.to_display(image), self._kept(image), row["prediction"])
            figure = kept_patches([shown], "Patches that were kept")
            figure.savefig(folder / f"{number:04d}_{path.stem}_kept.png")
        return rows

    def _kept(self, image: Tensor) -> list[np.ndarray]:
        with torch.inference_mode():
            maps = self.eval_model.kept_patches(image[None].to(self.device))  # type: ignore[operator]
        return [kept[0].cpu().numpy() for kept in maps]
