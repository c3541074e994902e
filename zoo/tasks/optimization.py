"""Optimizer and learning-rate schedule of a task, from settings of a recipe; built by timm."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.optim import (
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from zoo.arguments import blaming
from zoo.errors import ZooError, suggest

#: Any finite number.
_ANY = sys.float_info.max


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


#: Settings -> the smallest and the largest number they may be.
_LIMITS: Mapping[str, tuple[float, float]] = {
    "optimizer.lr": (0, _ANY),
    "optimizer.lr_batch_size": (1, _ANY),
    "optimizer.weight_decay": (0, _ANY),
    "optimizer.layer_decay": (0, 1),
    "optimizer.eps": (0, _ANY),
    "optimizer.momentum": (0, _ANY),
    "schedule.warmup_epochs": (0, _ANY),
    "schedule.warmup_lr": (0, _ANY),
    "schedule.min_lr": (0, _ANY),
    "schedule.poly_power": (0, _ANY),
    "ema_decay": (0, 1),
}


def check_settings(
    optimizer: OptimizerSettings, schedule: ScheduleSettings, ema_decay: float | None
) -> None:
    """What training would stumble over, or go wrong with, only after its start.

    Raises:
        ZooError: a number is outside of its limits or is none, timm does not know the optimizer,
            the shares of ``steps`` are not in order.
    """
    known = list_optimizers()
    # timm takes any case, and a wrapper before the name
    if optimizer.opt.lower().removeprefix("lookahead_") not in known:
        raise ZooError(
            f"model.init_args.optimizer.opt is {optimizer.opt!r}; {suggest(optimizer.opt, known)}"
        )
    groups = {"optimizer": optimizer, "schedule": schedule}
    for name, (least, most) in _LIMITS.items():
        group, _, key = name.rpartition(".")
        value = getattr(groups[group], key) if group else ema_decay
        if value is not None and not least <= value <= most:
            expected = f"{least} or more" if most == _ANY else f"{least} to {most}"
            raise ZooError(f"model.init_args.{name} is {value}, expected {expected}")
    shares = [share for share, _ in schedule.steps]
    if shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
        raise ZooError(
            f"model.init_args.schedule.steps begin at {shares}, expected shares of the run from 0 "
            "to 1, in order"
        )


def parameter_groups(model: Any, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """A model's parameters, grouped by weight decay and rate; the model may have its own way."""
    if hasattr(model, "weight_decay_groups"):
        return model.weight_decay_groups(settings.weight_decay)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    keep = [*listed, *settings.no_decay]
    if settings.layer_decay is None:
        return param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=keep)
    return param_groups_layer_decay(
        model, settings.weight_decay, no_weight_decay_list=keep, layer_decay=settings.layer_decay
    )


def build_optimizer(
    groups: list[dict[str, Any]], settings: OptimizerSettings, lr: float
) -> torch.optim.Optimizer:
    """timm's optimizer of this name.

    Args:
        groups: of parameters.
        settings: all but the rate.
        lr: the rate in use.

    Raises:
        ZooError: it does not take the settings.
    """
    given: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps}
    with blaming("model.init_args.optimizer"):
        return create_optimizer_v2(
            groups,
            opt=settings.opt,
            lr=lr,
            momentum=settings.momentum,
            **{name: value for name, value in given.items() if value is not None},
        )


def build_schedule(
    optimizer: torch.optim.Optimizer,
    settings: ScheduleSettings,
    lr: float,
    total: int,
    per_epoch: float,
) -> Scheduler:
    """The schedule of an optimizer.

    Args:
        optimizer: whose rates are set.
        settings: its form.
        lr: the highest rate.
        total: updates of the run.
        per_epoch: updates of an epoch.
    """
    if settings.sched in ("steps", "points"):
        return _StepSchedule(optimizer, total, settings.steps, settings.sched == "points")
    warmup = round(settings.warmup_epochs * per_epoch)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        decay_rate=settings.poly_power,
        sched="cosine" if settings.sched == "constant" else settings.sched,
        # a run that is shorter than its warm-up is all warm-up
        num_epochs=max(total - (warmup if settings.warmup_prefix else 0), 1),
        min_lr=lr if settings.sched == "constant" else settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_epochs=warmup,
        warmup_prefix=settings.warmup_prefix,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return scheduler


def count_updates(trainer: Any) -> tuple[int, float]:
    """Updates of the whole run, and of an epoch.

    Raises:
        ZooError: the run has no end.
    """
    trainer.fit_loop.setup_data()  # else the length of an epoch is unknown where steps are counted
    total = trainer.estimated_stepping_batches
    if total == float("inf"):
        raise ZooError("trainer.max_epochs or trainer.max_steps must be set: schedules need an end")
    return int(total), -(-trainer.num_training_batches // trainer.accumulate_grad_batches)


class _StepSchedule(Scheduler):
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
