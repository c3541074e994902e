"""What a run keeps in its folder beside its checkpoints: the recipe and pictures."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from zoo.atomic import sweep, write_atomically
from zoo.plots import learning_curve
from zoo.runs.metrics import MetricsTable
from zoo.tasks.base import Task


class RunFolder(Callback):
    """Makes the folder with the resolved recipe when training starts, and draws into it.

    Args:
        recipe: text of the resolved recipe.
        title: of the learning curve.
    """

    def __init__(self, recipe: str, title: str) -> None:
        self.recipe, self.title = recipe, title

    def connect(self, path: Path, table: MetricsTable) -> None:
        """Say which folder it is, and which table of metrics belongs to the run."""
        self.path, self.table = path, table

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the folder; the main process decides its name."""
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        if stage == "fit" and trainer.is_global_zero:
            for run in self.path.parent.iterdir() if self.path.parent.is_dir() else ():
                sweep(run)  # what a kill left in an earlier run, or in this one
                sweep(run / "checkpoints")
            write_atomically(self.path / "recipe.yaml", self.recipe.encode())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the learning curve."""
        self._draw_curve(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is of the learning curve."""
        self._draw_curve(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what the task shows of its test."""
        assert isinstance(pl_module, Task)
        figures = pl_module.figures()  # on every process: metrics may have to be put together
        if trainer.is_global_zero:
            for name, figure in figures.items():
                figure.savefig(self.path / f"{name}.png")

    def _draw_curve(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, Task)
        if trainer.is_global_zero and self.table.rows:
            figure = learning_curve(self.table.table(), self.title, task.monitor, task.monitor_mode)
            figure.savefig(self.path / "learning_curve.png")
