"""What every task shares: optimizer, schedule, averaged weights, and what a checkpoint keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from timm.optim import (
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric

import zoo
from zoo.arguments import blaming
from zoo.checkpoints.report import some, some_pairs
from zoo.data.base import DataModule
from zoo.errors import ZooError, suggest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a recipe says of a model, for messages.
MODEL = "model.init_args.model or model_args"
#: Before the names of averaged weights in a checkpoint.
AVERAGED = "ema.module."


@dataclass
class OptimizerSettings:
    """Optimizer and parameter groups, built by timm.

    Args:
        opt: timm's name of the optimizer.
        lr: learning rate for ``lr_batch_size`` samples per step; the rate in use is
            ``lr * batch / lr_batch_size``. With ``lr_batch_size: null`` it is ``lr`` itself.
        weight_decay: for all parameters but biases, those with one dimension, those the model lists
            in ``no_weight_decay()``, and names that match a pattern of ``no_decay``.
        layer_decay: factor of the learning rate from each layer to the one below it.
        betas, eps: of Adam and its like; None leaves the optimizer's own.
        momentum: of SGD and its like.
    """

    opt: str = "adamw"
    lr: float = 5e-4
    lr_batch_size: int | None = 512
    weight_decay: float = 0.05
    no_decay: list[str] = field(default_factory=list)
    layer_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float = 0.9


@dataclass
class ScheduleSettings:
    """Learning rate over the run, in epochs, set before every step; timm's schedulers.

    Args:
        sched: timm's name of the schedule; ``constant`` keeps the rate after the warm-up, ``steps``
            and ``points`` have no warm-up and follow ``steps``, the latter in straight lines.
        warmup_epochs: linear rise from ``warmup_lr``.
        warmup_prefix: the schedule begins after the warm-up; else it runs on below it.
        warmup_lr, min_lr: as they are, not scaled with the batch.
        steps: (share of the run, factor of the rate from there on), in order.
        poly_power: power of ``poly``.
    """

    sched: Literal["cosine", "tanh", "poly", "constant", "steps", "points"] = "cosine"
    warmup_epochs: float = 5.0
    warmup_prefix: bool = False
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    steps: list[tuple[float, float]] = field(default_factory=list)
    poly_power: float = 0.9


class StepSchedule(Scheduler):
    """Factors of the learning rate, each from a share of the run on.

    Args:
        optimizer: whose rates are set.
        total: updates of the run.
        steps: (share of the run, factor), in order; 1 before the first.
        straight: go to the next factor in a straight line instead of a step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total: int,
        steps: Sequence[tuple[float, float]],
        straight: bool = False,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.total, self.steps, self.straight = total, [(0.0, 1.0), *steps], straight

    def _get_lr(self, t: int) -> list[float]:
        share = t / self.total
        reached = [i for i, (start, _) in enumerate(self.steps) if share >= start][-1]
        start, factor = self.steps[reached]
        if self.straight and reached + 1 < len(self.steps):
            end, after = self.steps[reached + 1]
            factor += (after - factor) * (share - start) / (end - start)
        return [value * factor for value in self.base_values]


class Task(pl.LightningModule, ABC):
    """A model with its loss, metrics, optimizer and pictures.

    A subclass builds its parts in ``configure_models``, ``configure_losses`` and
    ``configure_metrics``, and implements ``training_step``, ``validation_step``, ``test_step``.
    What it logs is named ``train/...``, ``val/...``, ``test/...``.

    Args:
        optimizer, schedule: see their classes.
        ema_decay: weight of the past in the moving average of the weights, which is then what
            validation, test and ``best.ckpt`` use; None: no average.
        ema_warmup: let the decay rise to ``ema_decay``, for short runs.
    """

    #: Metric that picks the best checkpoint, and whether more or less of it is better.
    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["min", "max"]]
    #: Endings of the files that :meth:`predict_files` takes, lower case.
    input_suffixes: ClassVar[frozenset[str]]

    model: nn.Module
    #: Names of the classes, where the task has any and knows them; they are kept in checkpoints.
    class_names: Sequence[str] | None = None

    def __init__(
        self,
        optimizer: OptimizerSettings | None = None,
        schedule: ScheduleSettings | None = None,
        ema_decay: float | None = None,
        ema_warmup: bool = False,
    ) -> None:
        super().__init__()
        self.optimizer_settings = optimizer or OptimizerSettings()
        check_optimizer(self.optimizer_settings.opt)
        self.schedule_settings = schedule or ScheduleSettings()
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        self.ema: ModelEmaV3 | None = None
        self.train_loss = MeanMetric()
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()

    @abstractmethod
    def configure_models(self) -> None:
        """Set ``self.model``."""

    @abstractmethod
    def configure_losses(self) -> None:
        """Set the losses."""

    @abstractmethod
    def configure_metrics(self) -> None:
        """Set the metrics."""

    def check_data(self, data: DataModule) -> None:
        """Raise :class:`ZooError` if the data do not fit the task; called when both are set up."""

    def figures(self) -> dict[str, Figure]:
        """Pictures of the last test, by file name without ending."""
        return {}

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Any]:
        """What :meth:`predict_files` takes, from a command's files and folders: the files
        themselves, and all in folders that end in one of ``input_suffixes``.

        A task whose inputs are not single files, such as pairs, says here how they are given.

        Raises:
            ZooError: a folder holds none.
        """
        files: list[Path] = []
        for source in sources:
            if not source.is_dir():
                files.append(source)
                continue
            found = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower() in self.input_suffixes and path.is_file()
            )
            if not found:
                endings = " ".join(sorted(self.input_suffixes))
                raise ZooError(
                    f"{source} holds no files to predict, expected files ending in {endings}"
                )
            files += found
        return files

    @abstractmethod
    def predict_files(
        self, files: Sequence[Any], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Apply the task to what :meth:`find_inputs` found and write pictures of the results into
        ``folder``.

        Returns:
            a row for each file, with the same columns.
        """

    @property
    def eval_model(self) -> nn.Module:
        """The model that is judged: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def data(self) -> DataModule | None:
        """The data module of the run, if it has one."""
        return getattr(self.trainer, "datamodule", None)

    # training

    def setup(self, stage: str) -> None:
        """Check the data against the task; start the weight average."""
        if self.data is not None:
            self.check_data(self.data)
        if stage == "fit" and self.ema_decay is not None and self.ema is None:
            self.ema = ModelEmaV3(self.model, self.ema_decay, use_warmup=self.ema_warmup)
            self.ema.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from their settings and the size of a step."""
        settings, plan = self.optimizer_settings, self.schedule_settings
        lr = settings.lr
        if settings.lr_batch_size is not None:
            if self.data is None:
                raise ZooError("lr_batch_size needs a data module; set it to null without one")
            batch = self.data.batch_size * self.trainer.accumulate_grad_batches
            lr = lr * batch / settings.lr_batch_size
        given: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps}
        with blaming("model.init_args.optimizer"):
            optimizer = create_optimizer_v2(
                self._parameter_groups(),
                opt=settings.opt,
                lr=lr,
                momentum=settings.momentum,
                **{name: value for name, value in given.items() if value is not None},
            )
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ZooError(
                "trainer.max_epochs or trainer.max_steps must be set: schedules need an end"
            )
        per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        if plan.sched in ("steps", "points"):
            straight = plan.sched == "points"
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": StepSchedule(optimizer, int(steps), plan.steps, straight),
                    "interval": "step",
                },
            }
        warmup = round(plan.warmup_epochs * per_epoch)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            decay_rate=plan.poly_power,
            sched="cosine" if plan.sched == "constant" else plan.sched,
            num_epochs=int(steps) - (warmup if plan.warmup_prefix else 0),
            min_lr=lr if plan.sched == "constant" else plan.min_lr,
            warmup_lr=plan.warmup_lr,
            warmup_epochs=warmup,
            warmup_prefix=plan.warmup_prefix,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        settings = self.optimizer_settings
        model: Any = self.model
        if hasattr(model, "weight_decay_groups"):
            return model.weight_decay_groups(settings.weight_decay)
        listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        keep = [*listed, *settings.no_decay]
        if settings.layer_decay is None:
            return param_groups_weight_decay(
                self.model, settings.weight_decay, no_weight_decay_list=keep
            )
        return param_groups_layer_decay(
            self.model,
            settings.weight_decay,
            no_weight_decay_list=keep,
            layer_decay=settings.layer_decay,
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Timm's schedulers want the number of updates."""
        scheduler.step_update(self.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One update of the weights, then of their average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step if self.ema_warmup else None)

    def log_loss(self, loss: Tensor, batch_size: int) -> Tensor:
        """Keep the training loss for the epoch's mean, write it now and then; returns it.

        Raises:
            ZooError: it is not finite.
        """
        if not torch.isfinite(loss):
            value, lr = loss.detach().item(), self.trainer.optimizers[0].param_groups[0]["lr"]
            raise ZooError(
                f"the training loss became {value:g} in epoch {self.current_epoch}, step "
                f"{self.global_step} (learning rate {lr:.3g}); the last checkpoint is from before. "
                "Lower --model.init_args.optimizer.lr, raise schedule.warmup_epochs, or set "
                "--trainer.gradient_clip_val"
            )
        self.train_loss.update(loss.detach(), batch_size)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            groups = self.trainer.optimizers[0].param_groups
            self.log("lr", max(group["lr"] for group in groups))
            self.log("train/loss_step", loss.detach(), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_train_epoch_end(self) -> None:
        """Write the epoch's mean loss."""
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the names of the classes; without optimizer, one set of weights under ``model.``:
        the judged one.
        """
        if self.class_names is not None:
            checkpoint["class_names"] = list(self.class_names)
        if "optimizer_states" not in checkpoint:
            checkpoint["state_dict"] = {
                f"model.{name}": value
                for name, value in judged_weights(checkpoint["state_dict"]).items()
            }

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the judged weights of a checkpoint, and the names of the classes, if it has any; the
        average, if there is one, ends here.

        Raises:
            ZooError: they are of another model.
        """
        weights = judged_weights(checkpoint["state_dict"])
        check_weights(weights, self.model)
        self.ema = None
        self.model.load_state_dict(weights)
        self.class_names = checkpoint.get("class_names", self.class_names)

    def check_resumable(self, checkpoint: Mapping[str, Any]) -> None:
        """Training can go on from a checkpoint only with its model, averaged or not as it was.

        Raises:
            ZooError: otherwise.
        """
        weights = checkpoint["state_dict"]
        check_weights(without_prefix(weights, "model."), self.model)
        averaged = any(name.startswith(AVERAGED) for name in weights)
        if averaged != (self.ema_decay is not None):
            has = "has averaged weights" if averaged else "has no averaged weights"
            raise ZooError(
                f"model.init_args.ema_decay is {self.ema_decay}, but the checkpoint {has}: go on "
                "with the setting that it was trained with"
            )


def build_model(
    name: str, arguments: Mapping[str, Any], pretrained: str | None = None
) -> nn.Module:
    """The model that a recipe's ``model``, ``model_args`` and ``pretrained`` describe.

    Raises:
        ZooError: there is no such model, it does not take the arguments, or the weights do not fit.
    """
    with blaming(MODEL):
        model = zoo.create_model(name, **arguments)
    if pretrained is not None:
        zoo.load_pretrained(model, pretrained)
    return model


def check_optimizer(name: str) -> None:
    """timm must know the optimizer; it would say so only when training begins."""
    known = list_optimizers()
    # timm takes any case, and a wrapper before the name
    if name.lower().removeprefix("lookahead_") not in known:
        raise ZooError(f"model.init_args.optimizer.opt is {name!r}; {suggest(name, known)}")


def check_weights(given: Mapping[str, Tensor], model: nn.Module) -> None:
    """A checkpoint's weights must be those of the model, name by name and shape by shape.

    Raises:
        ZooError: they are not; the message has the first that differ.
    """
    own = model.state_dict()
    shapes = {
        name: (str(list(value.shape)), str(list(own[name].shape)))
        for name, value in given.items()
        if name in own and own[name].shape != value.shape
    }
    parts = [
        f"{what}: {listed}"
        for what, listed in (
            ("other shapes (checkpoint / model)", some_pairs(shapes, 3)),
            ("missing in the checkpoint", some((n for n in own if n not in given), 3)),
            ("unknown to the model", some((n for n in given if n not in own), 3)),
        )
        if listed
    ]
    if parts:
        raise ZooError(
            f"the checkpoint's weights do not fit {type(model).__name__}: {'; '.join(parts)}. "
            "Build the model as it was trained: model.init_args.model and model_args of its recipe"
        )


def check_num_classes(num_classes: int, names: Sequence[str], kind: str = "classes") -> None:
    """The task's number of classes must be that of the data.

    Raises:
        ZooError: it is not; the message calls them ``kind``.
    """
    if len(names) != num_classes:
        raise ZooError(
            f"model.init_args.num_classes is {num_classes}, but the data have {len(names)} {kind}: "
            f"set it to {len(names)}"
        )


def check_several(num_classes: int) -> None:
    """There is nothing to tell apart in less than two classes.

    Raises:
        ZooError: there are fewer.
    """
    if num_classes < 2:
        raise ZooError(
            f"model.init_args.num_classes is {num_classes}, expected 2 or more: the number of "
            "classes of the data"
        )


def judged_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that validation used, without prefix: averaged ones if there are any."""
    averaged = any(name.startswith(AVERAGED) for name in state_dict)
    return without_prefix(state_dict, AVERAGED if averaged else "model.")


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
