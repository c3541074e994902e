"""Optimizer, schedule, weight average and checkpoints that all tasks share."""

import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric

from zoo.data import DataModule
from zoo.errors import ZooError
from zoo.tasks import OptimizerSettings, ScheduleSettings, Task
from zoo.tasks._weights import evaluated_weights


class Line(DataModule):
    """y = 2x + 1 at sixteen places."""

    def load(self, split):
        return [(torch.tensor([x / 8]), torch.tensor([x / 4 + 1])) for x in range(16)]

    def train_transform(self, sample):
        return sample

    eval_transform = train_transform


class Regression(Task):
    monitor, monitor_mode = "val/loss", "min"
    data_type, data_has, data_example = Line, "a line", "tests.Line"

    def configure_models(self):
        self.model = nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Linear(4, 1))

    def configure_losses(self):
        self.rates = []

    def configure_metrics(self, split):
        return {"loss": MeanMetric()}

    def training_loss(self, batch):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return F.mse_loss(self.model(batch[0]), batch[1])

    def evaluate(self, batch, scores):
        error = F.mse_loss(self.eval_model(batch[0]), batch[1])
        scores["loss"].update(error, len(batch[0]))


def run(task: Task, **settings) -> pl.Trainer:
    trainer = pl.Trainer(
        **{"max_epochs": 4, "accelerator": "cpu", "logger": False, **settings},
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=Line(batch_size=4))
    return trainer


def rates(**settings) -> list[float]:
    schedule = ScheduleSettings(**settings)
    task = Regression(OptimizerSettings(lr=0.1, lr_batch_size=None), schedule)
    run(task)
    return [step[0] for step in task.rates]


def test_rate_scales_with_the_batch():
    constant = ScheduleSettings(sched="constant", warmup_epochs=0)
    for accumulate, expected in ((1, 0.1 * 4 / 8), (2, 0.1 * 8 / 8)):
        task = Regression(OptimizerSettings(lr=0.1, lr_batch_size=8), constant)
        run(task, accumulate_grad_batches=accumulate)
        assert {rate for step in task.rates for rate in step} == {expected}


def test_warmup_and_cosine_per_step():
    found = rates(warmup_epochs=1, warmup_lr=0.01, min_lr=0.02)
    warmup = [0.01 + (0.1 - 0.01) * step / 4 for step in range(4)]
    cosine = [0.02 + 0.08 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(4, 16)]
    assert found == pytest.approx(warmup + cosine)


def test_schedule_after_the_warmup():
    found = rates(warmup_epochs=1, warmup_prefix=True, warmup_lr=0.01, min_lr=0.02)
    cosine = [0.02 + 0.08 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert found[4:] == pytest.approx(cosine)


@pytest.mark.parametrize("epochs", [4, 8])
@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "constant"])
def test_a_run_that_is_shorter_than_its_warmup(sched, epochs):
    found = rates(sched=sched, warmup_epochs=epochs, warmup_prefix=True, warmup_lr=0.01)
    rise = [0.01 + (0.1 - 0.01) * step / (4 * epochs) for step in range(16)]
    assert found == pytest.approx(rise)


def test_constant_rate():
    assert rates(sched="constant", warmup_epochs=0) == [0.1] * 16


def test_weight_decay_leaves_out_biases_norms_and_listed_names():
    task = Regression(OptimizerSettings(weight_decay=0.3, no_decay=["2.*"]))
    trainer = run(task)
    decayed = [
        [parameter.shape for parameter in group["params"]]
        for group in trainer.optimizers[0].param_groups
        if group["weight_decay"]
    ]
    assert decayed == [[torch.Size([4, 1])]]
    assert trainer.optimizers[0].defaults["lr"] == 5e-4 * 4 / 512


def test_layer_decay_lowers_the_rate_of_lower_layers():
    settings = OptimizerSettings(lr=0.1, lr_batch_size=None, layer_decay=0.5)
    task = Regression(settings, ScheduleSettings(sched="constant", warmup_epochs=0))
    task.model.group_matcher = lambda coarse: {"stem": r"^0", "blocks": [(r"^(1|2)", None)]}
    run(task, max_epochs=1)
    assert max(task.rates[0]) == pytest.approx(0.1)
    assert min(task.rates[0]) == pytest.approx(0.1 * 0.25)


def test_average_follows_every_update():
    expected = None

    class Watched(Regression):
        def on_train_batch_end(self, *args):
            nonlocal expected
            weight = self.model[0].weight.detach().clone()
            if self.trainer.global_step == 1:
                expected = 0.75 * start + 0.25 * weight
            else:
                expected = 0.75 * expected + 0.25 * weight

    task = Watched(OptimizerSettings(lr=1.0), ema_decay=0.75)
    start = task.model[0].weight.detach().clone()
    run(task, max_epochs=2)
    assert torch.allclose(task.ema.module[0].weight, expected)
    assert task.eval_model is task.ema.module
    assert not any(parameter.requires_grad for parameter in task.ema.parameters())


def test_checkpoint_without_optimizer_holds_the_evaluated_weights():
    task = Regression(OptimizerSettings(lr=1.0), ema_decay=0.5)
    trainer = run(task)
    full = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    best = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    assert {name.partition(".")[0] for name in full["state_dict"]} == {"model", "ema"}
    assert set(best["state_dict"]) == {f"model.{name}" for name in task.model.state_dict()}
    averaged = task.ema.module[0].weight
    assert torch.equal(best["state_dict"]["model.0.weight"], averaged)
    assert torch.equal(evaluated_weights(full["state_dict"])["0.weight"], averaged)

    other = Regression()
    other.load_weights(full)
    assert other.ema is None and torch.equal(other.model[0].weight, averaged)


def test_weights_of_another_model_are_refused():
    task, other = Regression(), Regression()
    other.model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    weights = {f"model.{name}": value for name, value in task.model.state_dict().items()}
    with pytest.raises(ZooError, match=r"0\.weight \[4, 1\] / \[4, 2\]; unknown to .*1\.weight"):
        other.load_weights({"state_dict": weights})


def test_unknown_optimizers_are_said_at_once():
    with pytest.raises(ZooError, match="opt is 'sdg'; did you mean sgd"):
        Regression(OptimizerSettings(opt="sdg"))
    Regression(OptimizerSettings(opt="Lookahead_AdamW"))
    with pytest.raises(ZooError, match=r"model\.init_args\.optimizer: "):
        run(Regression(OptimizerSettings(betas=(2.0, 3.0))))


@pytest.mark.parametrize(
    "optimizer, schedule, average, expected",
    [
        ({"lr_batch_size": 0}, {}, None, "optimizer.lr_batch_size is 0, expected 1 or more"),
        ({"lr": math.nan}, {}, None, "optimizer.lr is nan, expected 0 or more"),
        ({"lr": math.inf}, {}, None, "optimizer.lr is inf"),
        ({"weight_decay": -1.0}, {}, None, "optimizer.weight_decay is -1.0"),
        ({"layer_decay": 1.5}, {}, None, "optimizer.layer_decay is 1.5, expected 0 to 1"),
        ({}, {"warmup_epochs": -1.0}, None, "schedule.warmup_epochs is -1.0, expected 0 or more"),
        ({}, {"steps": [(0.5, 1.0), (0.2, 0.1)]}, None, r"steps begin at \[0.5, 0.2\]"),
        ({}, {"steps": [(math.nan, 1.0)]}, None, r"steps begin at \[nan\]"),
        ({}, {}, 1.5, r"init_args\.ema_decay is 1.5, expected 0 to 1"),
    ],
)
def test_numbers_outside_their_limits_are_said_at_once(optimizer, schedule, average, expected):
    with pytest.raises(ZooError, match=expected):
        Regression(OptimizerSettings(**optimizer), ScheduleSettings(**schedule), average)


def test_loss_that_is_not_finite_stops_the_run():
    task = Regression()
    task.model[0].weight.data.fill_(float("nan"))
    with pytest.raises(ZooError, match="training loss became nan in epoch 0, step 0"):
        run(task)


def test_schedules_need_an_end():
    with pytest.raises(ZooError, match=r"max_epochs or trainer.max_steps"):
        run(Regression(), max_epochs=-1)
