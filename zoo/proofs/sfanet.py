"""The counter that always answers the mean."""

from __future__ import annotations

import torch

from zoo.cli import Recipe
from zoo.list import recipes_folder
from zoo.proofs.base import Measurement


class ConstantCount(Measurement):
    """Error ``mae`` on the test pictures of the training pictures' mean count.

    Args:
        recipe: file below ``recipes/`` whose data are taken.
    """

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def measure(self) -> dict[str, float]:
        """Count the points."""
        _, data = Recipe(recipes_folder() / self.recipe).build()
        train, test = (
            torch.tensor([float(len(sample["points"])) for sample in data.source(split)])
            for split in ("train", "test")
        )
        return {"mae": float((test - train.mean()).abs().mean())}
