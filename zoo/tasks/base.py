"""What every task shares: steps, scores, EMA weights, checkpoints, the loop over a user's files.

A task declares what is learnt, what is measured and what one input's prediction is:

- ``configure_models``, ``configure_losses``, ``configure_metrics(split)``: its parts;
- ``data_type``, ``check_data``, ``use_data``: which data fit it, and what it takes from them;
- ``training_loss(batch)`` and ``evaluate(batch, scores)``: a batch;
- ``examples``, ``summarize``, ``finish_test``, ``figures``: what is shown of a test;
- ``find_inputs`` and ``predict_one``: a user's files, see :class:`FilePrediction`.

All loops, logging and resets stand here. Scores are named ``train/...``, ``val/...``, ``test/...``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.errors import ZooError
from zoo.tasks._files import FilePrediction
from zoo.tasks._scores import Scores, numbers
from zoo.tasks._weights import EMA, check_weights, evaluated_weights, starts_fresh, without_prefix
from zoo.tasks.optimization import (
    OptimizerSettings,
    ScheduleSettings,
    build_optimizer,
    build_schedule,
    check_settings,
    count_updates,
    parameter_groups,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a recipe says of a model, for messages.
MODEL = "model.init_args.model or model_args"


class Task(FilePrediction):
    """A model with its losses, metrics, optimizer and pictures.

    Args:
        optimizer, schedule: see their classes.
        ema_decay: weight of the past in the exponential moving average of the weights (EMA), which
            is then what validation, test and ``best.ckpt`` use; None: no average.
        ema_warmup: let the decay rise to ``ema_decay``, for short runs.

    Attributes:
        scores: the metrics of ``val`` and ``test``.
        results: what the last validation or test has computed, by the metrics' names.
        shown: what :meth:`examples` gave of the test.
    """

    #: Metric that picks the best checkpoint, and whether more or less of it is better.
    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["min", "max"]]
    #: What the data have if they are a ``data_type``, and a class that has it, for messages.
    data_has: ClassVar[str]
    data_example: ClassVar[str]
    #: Names that a sample must have, where samples are dictionaries.
    sample_keys: ClassVar[Sequence[str]] = ()
    #: So many test samples are shown.
    shown_limit: ClassVar[int] = 0

    model: nn.Module
    #: Number of classes, where the task has any.
    num_classes: int | None = None

    def __init__(
        self,
        optimizer: OptimizerSettings | None = None,
        schedule: ScheduleSettings | None = None,
        ema_decay: float | None = None,
        ema_warmup: bool = False,
    ) -> None:
        super().__init__()
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.schedule_settings = schedule or ScheduleSettings()
        check_settings(self.optimizer_settings, self.schedule_settings, ema_decay)
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        self.ema: ModelEmaV3 | None = None
        self.starts_fresh = starts_fresh()
        self.train_loss = MeanMetric()
        self.configure_models()
        self.configure_losses()
        self.scores = nn.ModuleDict(
            {split: Scores(self.configure_metrics(split)) for split in ("val", "test")}
        )
        self.results: dict[str, Any] = {}
        self.shown: list[Any] = []

    # what a task declares

    @abstractmethod
    def configure_models(self) -> None:
        """Set ``self.model``."""

    def configure_losses(self) -> None:
        """Set losses that are modules."""

    @abstractmethod
    def configure_metrics(self, split: str) -> dict[str, Metric | MetricCollection]:
        """The metrics of ``val`` or ``test``, by name. A result that is no single number is not
        logged; :meth:`figures` finds it in ``results``."""

    def check_data(self, data: DataModule) -> None:
        """The data must fit the task; called when both are set up.

        Raises:
            ZooError: they do not.
        """
        has_classes = self.num_classes is None or hasattr(data, "class_names")
        if not isinstance(data, self.data_type) or not has_classes:
            raise ZooError(self._lacking(data))
        if self.num_classes is not None and len(data.class_names) != self.num_classes:
            raise ZooError(
                f"model.init_args.num_classes is {self.num_classes}, but the data have "
                f"{len(data.class_names)} classes: set it to {len(data.class_names)}"
            )
        sample = data.first_sample() if self.sample_keys else None
        if sample is not None and not set(self.sample_keys) <= set(sample):
            raise ZooError(self._lacking(data))

    def _lacking(self, data: DataModule) -> str:
        return (
            f"data.class_path: {type(data).__name__} has no {self.data_has}, expected a class such "
            f"as {self.data_example}"
        )

    def use_data(self, data: DataModule) -> None:
        """Take what the data decide, such as the names of the classes; they were checked."""
        if self.num_classes is not None:
            self.class_names = list(data.class_names)
        self.data_facts = data.facts()

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """Loss of one training batch."""

    @abstractmethod
    def evaluate(self, batch: Any, scores: Scores) -> Any:
        """Update the scores of a split with one batch; returns what :meth:`examples` needs."""

    def count_samples(self, batch: Any) -> int:
        """Number of samples in a batch; not batch_size, which Lightning's tuner would set."""
        return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])

    def examples(self, batch: Any, outputs: Any) -> Iterator[Any]:
        """What is shown of each sample of a test batch, made when it is asked for."""
        return iter(())

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """What is logged of the metrics' results, by name without the split."""
        return numbers(results)

    def finish_test(self) -> dict[str, Any]:
        """What a test does once, behind its last batch; returns more scores."""
        return {}

    def figures(self) -> dict[str, Figure]:
        """Pictures of the last test, by file name without ending."""
        return {}

    # training

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the one with EMA weights where there is one."""
        return self.model if self.ema is None else self.ema.module

    def exported(self) -> tuple[nn.Module, Callable[..., Any]]:
        """The network that becomes a program for others, and the method that is called when a file
        is predicted: what it is given then, the network takes by the same names."""
        return self.eval_model, self.eval_model.forward

    @property
    def has_unused_parameters(self) -> bool:
        """Whether there are steps in which some of the parameters that learn get no gradient."""
        return False

    @property
    def data(self) -> DataModule | None:
        """The data module of the run, if it has one."""
        return getattr(self.trainer, "datamodule", None)

    def load_start(self, module: nn.Module, source: str | None) -> None:
        """Let a part of the task start from published weights, unless a checkpoint's follow.

        Raises:
            ZooError: they cannot be read, or do not fit.
        """
        if source is not None and self.starts_fresh:
            zoo.load_pretrained(module, source)

    @override
    def setup(self, stage: str) -> None:
        if self.data is not None:
            self.check_data(self.data)
            self.use_data(self.data)
        if stage == "fit" and self.ema_decay is not None and self.ema is None:
            if self._averaging_callbacks():
                raise ZooError(
                    "model.init_args.ema_decay and a callback of the trainer both average the "
                    "weights: set ema_decay to null, or leave the callback out"
                )
            self.ema = ModelEmaV3(self.model, self.ema_decay, use_warmup=self.ema_warmup)
            self.ema.requires_grad_(False)
        if (
            stage == "fit"
            and isinstance(self.trainer.strategy, DDPStrategy)
            and self.has_unused_parameters
        ):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def _averaging_callbacks(self) -> list[WeightAveraging]:
        trainer = self._trainer  # None where a checkpoint is written without one
        callbacks = [] if trainer is None else trainer.callbacks
        return [c for c in callbacks if isinstance(c, WeightAveraging)]

    @override
    def configure_optimizers(self) -> Any:
        settings = self.optimizer_settings
        lr = settings.lr
        total, per_epoch = count_updates(self.trainer)
        if settings.lr_batch_size is not None:
            batch = self._batch_size() * self.trainer.accumulate_grad_batches
            lr = lr * batch / settings.lr_batch_size
        optimizer = build_optimizer(self.parameter_groups(), settings, lr)
        schedule = build_schedule(optimizer, self.schedule_settings, lr, total, per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _batch_size(self) -> int:
        """Samples of a training batch, all processes together."""
        if self.data is not None:
            return self.data.batch_size
        size = getattr(self.trainer.train_dataloader, "batch_size", None)
        if size is None:
            raise ZooError(
                "lr_batch_size needs a data module or a loader that knows its batch_size: set "
                "optimizer.lr_batch_size to None without one"
            )
        return size * self.trainer.world_size

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets."""
        return parameter_groups(self.model, self.optimizer_settings)

    @override
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, Scheduler):  # timm's want the number of updates
            scheduler.step_update(self.global_step)
        else:  # of a callback, such as stochastic weight averaging
            super().lr_scheduler_step(scheduler, metric)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step if self.ema_warmup else None)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.log_loss(self.training_loss(batch), self.count_samples(batch))

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
        if every and (self.global_step + 1) % every == 0:
            groups = self.trainer.optimizers[0].param_groups
            self.log("lr", max(group["lr"] for group in groups))
            self.log("train/loss_step", loss.detach(), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    @override
    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()

    # evaluation

    @override
    def on_validation_epoch_start(self) -> None:
        self.scores["val"].reset()

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, self.scores["val"])

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    @override
    def on_test_epoch_start(self) -> None:
        self.scores["test"].reset()
        self.shown = []

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.keep_examples(batch, self.evaluate(batch, self.scores["test"]))

    def keep_examples(self, batch: Any, outputs: Any) -> None:
        """Take what is shown of a test batch: the first samples."""
        missing = max(0, self.shown_limit - len(self.shown))
        self.shown += islice(self.examples(batch, outputs), missing)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_scores("test")
        self._log_values("test", self.finish_test())

    def _log_scores(self, split: str) -> None:
        self.results = self.scores[split].compute()
        self.scores[split].reset()
        self._log_values(split, self.summarize(self.results))

    def _log_values(self, split: str, values: Mapping[str, Any]) -> None:
        best_by = self.monitor.partition("/")[2]  # the others are in the table of results
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == best_by)

    # checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.class_names is not None:
            checkpoint["class_names"] = list(self.class_names)
        if self.data_facts is not None:
            checkpoint["data_facts"] = dict(self.data_facts)
        if "optimizer_states" not in checkpoint:  # one set of weights: the evaluated one
            for callback in self._averaging_callbacks():
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for own in ("current_model_state", "averaging_state"):
                    checkpoint.pop(own, None)
            checkpoint["state_dict"] = {
                f"model.{name}": value
                for name, value in evaluated_weights(checkpoint["state_dict"]).items()
            }

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the evaluated weights of a checkpoint, and what it has of the data: the names of the
        classes, facts; the moving average, if there is one, ends here.

        Raises:
            ZooError: they are of another model.
        """
        weights = evaluated_weights(checkpoint["state_dict"])
        check_weights(weights, self.model)
        self.ema = None
        self.model.load_state_dict(weights)
        self.class_names = checkpoint.get("class_names", self.class_names)
        self.data_facts = checkpoint.get("data_facts", self.data_facts)

    def check_resumable(self, checkpoint: Mapping[str, Any]) -> None:
        """Training can go on from a checkpoint only with its model, with EMA weights or without.

        Raises:
            ZooError: otherwise.
        """
        weights = checkpoint["state_dict"]
        check_weights(without_prefix(weights, "model."), self.model)
        has_ema = any(name.startswith(EMA) for name in weights)
        if has_ema != (self.ema_decay is not None):
            raise ZooError(
                f"model.init_args.ema_decay is {self.ema_decay}, but the checkpoint has "
                f"{'EMA weights' if has_ema else 'no EMA weights'}: go on with the setting that it "
                "was trained with"
            )


class ModelTask(Task):
    """A task around one registered model.

    Args:
        model: name of a model, ``python -m zoo.list`` shows them.
        model_args: arguments of the model beyond its published ones.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        kwargs: see :class:`Task`.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained = pretrained
        super().__init__(**kwargs)

    @override
    def configure_models(self) -> None:
        with blaming(MODEL):
            self.model = zoo.create_model(self.model_name, **self.model_args)
        self.load_start(self.model, self.pretrained)


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
