"""Proofs that train a recipe and look at what came out, or at its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from zoo.cli import Recipe
from zoo.data.base import DataModule
from zoo.list import recipes_folder
from zoo.proofs.base import Measurement
from zoo.tasks.base import Task


def open_recipe(recipe: str, overrides: dict[str, Any], seed: int = 0) -> Recipe:
    """A recipe below ``recipes/`` with values set in it; see :class:`OfRecipe`."""
    options = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in overrides.items()
    ]
    return Recipe(recipes_folder() / recipe, [*options, f"--seed_everything={seed}"])


class OfRecipe(Measurement):
    """Something about a recipe.

    Args:
        recipe: file below ``recipes/``.
        overrides: values to set in it, such as ``{model.init_args.model_args.gate: open}``.
    """

    def __init__(self, recipe: str, overrides: dict[str, Any] | None = None) -> None:
        self.recipe, self.overrides = recipe, overrides or {}

    def open(self, seed: int = 0) -> Recipe:
        """The recipe with its overrides."""
        return open_recipe(self.recipe, self.overrides, seed)


def train(recipe: Recipe) -> tuple[Task, DataModule, dict[str, float]]:
    """Train a recipe and test it after its last step, without a run's folder.

    Returns:
        task, data, and what the test wrote (``test/iou`` as ``iou``).
    """
    task, data = recipe.build()
    trainer = fit_recipe(recipe, task, data)
    scores = trainer.test(task, datamodule=data, verbose=False)[0]
    return task, data, {key.rpartition("/")[2]: value for key, value in scores.items()}


def fit_recipe(recipe: Recipe, task: Task, data: DataModule) -> Trainer:
    """Train a task as its recipe says, without a run's folder and validation."""
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(task, datamodule=data)
    return trainer


class Trained(OfRecipe):
    """The test of a recipe after its last step, without a run's folder; the mean over seeds.

    Measures what the test writes (``test/iou`` as ``iou``), ``parameters`` (of the network, those
    that learn), and what a subclass finds in ``inspect``.

    Args:
        recipe, overrides: see :class:`OfRecipe`.
        seeds: of the runs.
    """

    def __init__(
        self, recipe: str, overrides: dict[str, Any] | None = None, seeds: Sequence[int] = (0,)
    ) -> None:
        super().__init__(recipe, overrides)
        self.seeds = list(seeds)

    def inspect(self, task: Task, data: DataModule) -> dict[str, float]:
        """More numbers, from the trained task in evaluation mode."""
        return {}

    def measure(self) -> dict[str, float]:
        """Train and test, once for each seed."""
        runs = [self._run(seed) for seed in self.seeds]
        return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}

    def _run(self, seed: int) -> dict[str, float]:
        task, data, measured = train(self.open(seed))
        learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
        return measured | {"parameters": learning} | self.inspect(task.eval(), data)
