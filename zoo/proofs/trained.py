"""Proofs that train a recipe and look at what came out, or at its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer

from zoo.cli import Recipe
from zoo.data.base import DataModule
from zoo.plots.proofs import Axes, Curve, Pictures
from zoo.proofs.base import Measured, Measurement
from zoo.recipes import find_recipe
from zoo.tasks._dense import DenseTask
from zoo.tasks.base import Task

#: Points of a learning curve.
_POINTS = 40
#: Samples whose pictures are kept.
SHOWN = 2


def open_recipe(recipe: str, overrides: dict[str, Any], seed: int) -> Recipe:
    """A recipe below ``recipes/`` with values set in it; see :class:`OfRecipe`.

    Where its data are made, another seed makes others, in a folder of their own.
    """
    settings = {**overrides, "seed_everything": seed}
    opened = _open(recipe, settings)
    data = opened.config.data.init_args
    if seed and getattr(data.get("sample"), "seed", None) is not None:
        if "root" in data:
            settings["data.init_args.root"] = f"{data.root}_seed{seed}"
        else:
            path = Path(data.path)
            folder = path.parent.with_name(f"{path.parent.name}_seed{seed}")
            settings["data.init_args.path"] = str(folder / path.name)
        settings["data.init_args.sample.seed"] = data.sample.seed + seed
        opened = _open(recipe, settings)
    return opened


def _open(recipe: str, settings: dict[str, Any]) -> Recipe:
    options = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    ]
    return Recipe(find_recipe(recipe), options)


class OfRecipe(Measurement):
    """Something about a recipe.

    Args:
        recipe: file below ``recipes/``.
        overrides: values to set in it, such as ``{model.init_args.model_args.gate: open}``.
    """

    def __init__(self, recipe: str, overrides: dict[str, Any] | None = None) -> None:
        self.recipe, self.overrides = recipe, overrides or {}

    def open(self, seed: int) -> Recipe:
        """The recipe with its overrides."""
        return open_recipe(self.recipe, self.overrides, seed)

    def made_from(self, seed: int) -> str:
        """The recipe, with all its settings."""
        return self.open(seed).text


class LossCurve(pl.Callback):
    """Keeps the training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the step's loss."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            self.losses.append(float(loss))

    def curves(self) -> list[Curve]:
        """Means over stretches of the training."""
        if not self.losses:
            return []
        losses = torch.tensor(self.losses)
        size = -(-len(losses) // _POINTS)
        parts = losses.split(size)
        steps = [min((i + 1) * size, len(losses)) - len(p) / 2 for i, p in enumerate(parts)]
        return [Curve(LEARNING, steps, [float(part.mean()) for part in parts])]


LEARNING = Axes("Learning", "training step", "training loss")


def train(recipe: Recipe) -> tuple[Task, DataModule, Measured]:
    """Train a recipe and test it after its last step, without a run's folder.

    Returns:
        task, data, and what the test wrote (``test/iou`` as ``iou``), with the learning curve and
        some samples of the test.
    """
    task, data = recipe.build()
    trainer, curves = fit_recipe(recipe, task, data)
    scores = trainer.test(task, datamodule=data, verbose=False)[0]
    values = {key.rpartition("/")[2]: value for key, value in scores.items()}
    return task, data, Measured(values, curves, shown(task))


def fit_recipe(recipe: Recipe, task: Task, data: DataModule) -> tuple[Trainer, list[Curve]]:
    """Train a task as its recipe says, without a run's folder and validation."""
    losses = LossCurve()
    trainer = recipe.build_trainer(
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(task, datamodule=data)
    return trainer, losses.curves()


def shown(task: Task) -> list[Pictures]:
    """Samples of the last test, where the task shows maps."""
    return [dict(panels) for panels in task.shown[:SHOWN]] if isinstance(task, DenseTask) else []


class Trained(OfRecipe):
    """The test of a recipe after its last step, without a run's folder.

    Measures what the test writes (``test/iou`` as ``iou``), ``parameters`` (of the network, those
    that learn), and what a subclass finds in ``inspect``; draws the training loss, and samples of
    the test where the task shows any.

    Args:
        recipe, overrides: see :class:`OfRecipe`.
    """

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """More of the trained task in evaluation mode; its pictures take the place of the test's
        samples."""
        return Measured({})

    def measure(self, seed: int) -> Measured:
        """Train and test."""
        task, data, tested = train(self.open(seed))
        learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
        more = self.inspect(task.eval(), data)
        return Measured(
            tested.values | {"parameters": learning} | more.values,
            tested.curves + more.curves,
            more.pictures or tested.pictures,
        )
