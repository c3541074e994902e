"""Classification by a network that drops patches: the same, with pictures of those it kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from zoo.data.vision.images import ImageDataModule
from zoo.errors import ZooError
from zoo.plots.kept_patches import kept_patches
from zoo.tasks.vision.classification import ImageClassification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
TITLE = "Patches that were kept"


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
        assert isinstance(self.data, ImageDataModule)
        mistakes = [(image, t, g) for image, t, g in self.shown if t != g]
        right = [(image, t, g) for image, t, g in self.shown if t == g]
        rows = []
        for image, truth, guess in [*mistakes[:1], *right][:SHOWN]:
            text = f"{self.class_name(guess)} (true: {self.class_name(truth)})"
            rows.append((self.data.to_display(image), self._kept(image), text))
        return super().figures() | ({"kept_patches": kept_patches(rows, TITLE)} if rows else {})

    @override
    def further_figures(
        self, source: Path, picture: Image.Image, image: Tensor, prediction: str, data: Any
    ) -> dict[str, Figure]:
        shown = (data.to_display(image), self._kept(image), prediction)
        return {"kept": kept_patches([shown], TITLE)}

    @torch.inference_mode()
    def _kept(self, image: Tensor) -> list[np.ndarray]:
        maps = self.eval_model.kept_patches(image[None].to(self.device))  # type: ignore[operator]
        return [kept[0].cpu().numpy() for kept in maps]
