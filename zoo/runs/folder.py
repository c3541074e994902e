"""``runs/<recipe>/<time>/``: one folder for everything that a run leaves."""

from __future__ import annotations

import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from zoo.errors import ZooError
from zoo.plots import learning_curve
from zoo.runs.metrics import MetricsTable, write_atomically
from zoo.tasks.base import Task

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def recipe_name(recipe: Path) -> str:
    """``.../recipes/vision/vmamba/small.yaml`` -> ``vision/vmamba/small``."""
    parts = recipe.with_suffix("").parts
    if "recipes" in parts[:-1]:
        start = len(parts) - parts[::-1].index("recipes")
        return "/".join(parts[start:])
    return parts[-1]


def new_run_path(root: Path, name: str) -> Path:
    """A folder for a run that starts now; it does not exist yet."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = root / name / stamp
    number = 2
    while path.exists():
        path = root / name / f"{stamp}-{number}"
        number += 1
    return path


def latest_run(root: Path, name: str) -> Path:
    """The newest run of a recipe that has a checkpoint to go on from."""
    runs = sorted(path.parents[1] for path in (root / name).glob(f"*/{LAST}"))
    if not runs:
        raise ZooError(
            f"--resume: no run with a checkpoint in {root / name}; start one without --resume"
        )
    return runs[-1]


def resolve_checkpoint(source: Path) -> Path:
    """A checkpoint file, or the best (else the last) checkpoint of a run's folder."""
    if not source.is_dir():
        if source.exists():
            return source
        raise ZooError(f"{source} does not exist, expected a run's folder or a checkpoint")
    for name in (BEST, LAST):
        if (source / name).is_file():
            return source / name
    raise ZooError(f"{source} has no {BEST}, expected a run's folder or a checkpoint")


class RunFolder(Callback):
    """Makes the folder with the resolved recipe when training starts, and draws into it.

    Args:
        path: the folder.
        recipe: text of the resolved recipe.
        title: of the learning curve.
        table: the run's metrics.
    """

    def __init__(self, path: Path, recipe: str, title: str, table: MetricsTable) -> None:
        self.path, self.recipe, self.title, self.table = path, recipe, title, table

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the folder; the main process decides its name."""
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        if stage == "fit" and trainer.is_global_zero:
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
