"""Checkpoints that a killed run goes on from, to the same numbers.

A checkpoint of the last state is taken between two steps: when a step is about to begin, all that
the one before it did is done (its metrics written, its validation run, its average updated).
Lightning's own moment, the end of a step, comes before some of that. Beside Lightning's state it
keeps what the
result depends on: the random states and running metrics of every process, the position in the data,
and how many rows of ``metrics.csv`` belong to it.
"""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torchmetrics import Metric

from zoo.atomic import write_atomically
from zoo.errors import ZooError
from zoo.runs.folder import BEST, LAST
from zoo.runs.metrics import MetricsTable
from zoo.tasks.base import Task


class CheckpointFiles(TorchCheckpointIO):
    """Writes whole files or none, and reads no code.

    Args:
        recipe: text of the resolved recipe; it goes into every checkpoint, which so can be used
            alone.
        name: of the recipe.
    """

    def __init__(self, recipe: str, name: str) -> None:
        super().__init__()
        self.header = {"recipe": recipe, "name": name}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the target, then rename."""
        data = io.BytesIO()
        torch.save({**checkpoint, "zoo": self.header}, data)
        write_atomically(Path(path), data.getvalue())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint of this project; see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run has written.

    Raises:
        ZooError: the file is missing, broken, or something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ZooError(f"{path} does not exist, expected a checkpoint (.ckpt) of a run") from None
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise ZooError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or no checkpoint, expected a "
            "checkpoints/*.ckpt file that zoo.train has written"
        ) from error
    if not isinstance(checkpoint, dict) or "zoo" not in checkpoint:
        raise ZooError(
            f"{path} is not a checkpoint of a run (no recipe in it); for weights alone use "
            "--model.init_args.pretrained FILE, or zoo.predict --model NAME --pretrained FILE"
        )
    return checkpoint


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` every few steps and ``best.ckpt`` at each better validation.

    ``best.ckpt`` has the judged weights alone (the averaged ones, if weights are averaged) under
    ``model.``; ``last.ckpt`` has all that it takes to go on.

    Args:
        every_n_steps: optimizer steps between two writes of ``last.ckpt``.
        monitor: metric that tells which checkpoint is best; None: the task's own.
        mode: whether more or less of it is better; None: the task's own.
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ZooError(f"checkpoint.every_n_steps is {every_n_steps}, expected 1 or more")
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.best_score: float | None = None
        self._saved_step = 0
        self._resumed: dict[str, Any] | None = None

    def connect(self, folder: Path, table: MetricsTable) -> None:
        """Say where to write, and which table belongs to the run."""
        self.folder, self.table = folder, table

    @property
    def best_path(self) -> Path:
        """Where the best checkpoint is or will be."""
        return self.folder / BEST

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the main process's folder and the task's metric."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        assert isinstance(pl_module, Task)
        self.monitor = self.monitor or pl_module.monitor
        self.mode = self.mode or pl_module.monitor_mode

    # when

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the state between two steps, if it is time to."""
        if self._resumed is not None:
            # Lightning counts the steps for its loggers anew when it restarts
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._resumed["logged_steps"]
            self._resumed = None
        due = trainer.global_step - self._saved_step >= self.every_n_steps
        if due and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state; the best one too if there was no validation."""
        self._save_last(trainer)
        if self.best_score is None:
            trainer.save_checkpoint(self.best_path, weights_only=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights if they are the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise ZooError(
                f"checkpoint.monitor is {self.monitor!r}, which is not measured; expected one of "
                + ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/")))
            )
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        best = self.best_score
        if best is None or math.isnan(best) or sign * score > sign * best:
            self.best_score = score
            trainer.save_checkpoint(self.best_path, weights_only=True)

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    # what

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score, "saved_step": self._saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score so far."""
        self.best_score = state_dict["best_score"]
        self._saved_step = state_dict["saved_step"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        loops = checkpoint["loops"]["fit_loop"]
        batches = _between_steps(loops)
        checkpoint["exact"] = {
            "epoch": loops["epoch_progress"]["current"]["processed"],
            "batches": batches,
            "logged_steps": loops["epoch_loop.state_dict"]["_batches_that_stepped"],
            "rows": self.table.rows,
            "processes": _gather(
                {"random": _random_states(), "metrics": _metric_states(pl_module)}
            ),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go to the position in the data and in the table."""
        self._resumed = checkpoint["exact"]
        trainer.datamodule.start_at(  # type: ignore[attr-defined]
            self._resumed["epoch"], self._resumed["batches"]
        )
        if trainer.is_global_zero:
            self.table.cut(self._resumed["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put random states and running metrics back, last thing before the first step."""
        if self._resumed is not None and trainer.global_rank < len(self._resumed["processes"]):
            mine = self._resumed["processes"][trainer.global_rank]
            _restore_random_states(mine["random"])
            _restore_metric_states(pl_module, mine["metrics"])


def _between_steps(loops: dict[str, Any]) -> int:
    """Make Lightning's counters those of a finished step; batches done in this epoch.

    A batch that was fetched and has not begun is not counted, and an epoch that is over is the
    start of the next.
    """
    progress = loops["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    progress["total"]["ready"] = progress["total"]["completed"]
    current = progress["current"]
    epochs = loops["epoch_progress"]["current"]
    if epochs["processed"] == epochs["ready"]:
        for key in current:
            current[key] = 0
    current["ready"] = current["completed"]
    return int(current["completed"])


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of every process, on every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _random_states() -> dict[str, Any]:
    """States of all global generators, in types that load without code."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(words, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, array, *rest = states["numpy"]
    np.random.set_state((kind, array.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _metric_states(task: pl.LightningModule) -> dict[str, Any]:
    """What running metrics have summed up so far."""
    return {
        name: {"count": metric.update_count, "state": _to_cpu(metric.metric_state)}
        for name, metric in task.named_modules()
        if isinstance(metric, Metric) and metric.update_count
    }


def _restore_metric_states(task: pl.LightningModule, states: dict[str, Any]) -> None:
    for name, saved in states.items():
        metric: Any = task.get_submodule(name)
        for key, value in saved["state"].items():
            setattr(metric, key, _move(value, task.device))
        metric._update_count = saved["count"]


def _to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {key: _move(value, torch.device("cpu")) for key, value in state.items()}


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return [item.detach().to(device, copy=True) for item in value]
