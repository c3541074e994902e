"""Tasks trained and tested by one process or by one of two: ``python -m tests.two_processes FOLDER
TASK ...`` writes what came out of each as JSON.

What two processes do in a step is what one does that takes their shares one after the other and
steps on the mean of the gradients. So the one process here is given the same shares, one behind the
other. Batch norm, dropout and random numbers, which differ between processes, are left out on both
sides.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from tests.tiny_tasks import tiny_task
from zoo.cli import Recipe, quiet
from zoo.data.base import DataModule, EpochSampler, SampleKey, SeededDataset

#: Of the process group, or of the one process that stands for it.
SHARES = 2


class Shares(Sampler[SampleKey]):
    """The samples of a step as the processes have them, one share behind the other."""

    def __init__(self, whole: EpochSampler) -> None:
        self.whole = whole

    def set_epoch(self, epoch: int) -> None:
        self.whole.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[SampleKey]:
        keys = list(self.whole)
        for start in range(0, len(keys), self.whole.batch_size):
            step = keys[start : start + self.whole.batch_size]
            for share in range(SHARES):
                yield from step[share::SHARES]


def loader_of_shares(data: DataModule) -> DataLoader:
    dataset = SeededDataset(data.source("train"), data.train_transform, data.seed)
    size = min(data.batch_size, len(dataset))
    sampler = Shares(EpochSampler(len(dataset), size, data.seed, data.repeats))
    return data._loader(dataset, sampler, size // SHARES)


def without_chance(model: nn.Module) -> None:
    """Batch norm as in evaluation, no dropout, no stochastic depth."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(False)


def _stay_in_evaluation(self: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(self, False)


@contextmanager
def no_random_numbers() -> Iterator[None]:
    """Constants in their place, unless a generator is given."""

    def constant(function: Callable[..., Tensor], value: float) -> Callable[..., Tensor]:
        def instead(*args: Any, **kwargs: Any) -> Tensor:
            drawn = function(*args, **kwargs)
            return drawn if kwargs.get("generator") is not None else drawn.fill_(value)

        return instead

    def randint(*args: Any, **kwargs: Any) -> Tensor:
        drawn = _randint(*args, **kwargs)
        lowest = args[0] if len(args) > 1 and isinstance(args[1], int) else 0
        return drawn if kwargs.get("generator") is not None else drawn.fill_(lowest)

    def randperm(n: int, **kwargs: Any) -> Tensor:
        return _randperm(n, **kwargs) if "generator" in kwargs else torch.arange(n, **kwargs)

    _randint, _randperm = torch.randint, torch.randperm
    with (
        patch.object(torch, "rand", constant(torch.rand, 0.5)),
        patch.object(torch, "rand_like", constant(torch.rand_like, 0.5)),
        patch.object(torch, "randn", constant(torch.randn, 0.1)),
        patch.object(torch, "randn_like", constant(torch.randn_like, 0.1)),
        patch.object(torch, "randint", randint),
        patch.object(torch, "randperm", randperm),
        patch.object(torch, "multinomial", lambda p, *_, **__: p.argmax(-1, keepdim=True)),
    ):
        yield


def run(name: str, processes: int) -> dict[str, Any]:
    """Test, train and validate a task; its scores, and sums over its weights."""
    path, overrides = tiny_task(name)
    recipe = Recipe(
        path,
        [
            # or what divides the samples: a mean of batches is then one of samples
            "--data.init_args.eval_batch_size=1",
            *overrides,
            "--model.init_args.optimizer.opt=sgd",
            "--model.init_args.optimizer.lr=0.01",
            "--trainer.enable_progress_bar=false",
            "--trainer.limit_val_batches=null",
            "--trainer.limit_test_batches=null",
        ],
    )
    task, data = recipe.build()
    torch.manual_seed(0)
    without_chance(task.model)
    if processes == 1:
        data.train_dataloader = lambda: loader_of_shares(data)
    settings = {"devices": processes, "logger": False, "enable_checkpointing": False}
    if processes > 1:
        settings["strategy"] = "ddp"
    with no_random_numbers():
        trainer = recipe.build_trainer(**settings)
        tested = trainer.test(task, datamodule=data, verbose=False)[0]
        task.figures()
        if processes == 1:
            settings["accumulate_grad_batches"] = SHARES
            limit = recipe.config.trainer.limit_train_batches
            settings["limit_train_batches"] = limit and limit * SHARES
        trainer = recipe.build_trainer(**settings)
        trainer.fit(task, datamodule=data)
        scores = {key: float(value) for key, value in trainer.callback_metrics.items()}
    weights = {
        f"{what} of {key}": float(getattr(value.double(), what)())
        for key, value in task.model.state_dict().items()
        for what in ("sum", "norm")
    }
    return {"steps": trainer.global_step, "tested": tested, "trained": scores, "weights": weights}


def main() -> None:
    folder, *names = sys.argv[1:]
    os.chdir(folder)
    quiet()
    torch.set_num_threads(1)
    nn.modules.batchnorm._BatchNorm.train = _stay_in_evaluation
    rank, processes = (int(os.environ.get(key, value)) for key, value in _WORLD)
    for name in names:
        result = run(name, processes)
        Path(f"{name}.{processes}.{rank}.json").write_text(json.dumps(result))
        print(name, flush=True)


_WORLD = (("RANK", 0), ("WORLD_SIZE", 1))

if __name__ == "__main__":
    main()
