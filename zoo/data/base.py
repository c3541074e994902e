"""What every data module shares: batches that depend on the seed, the epoch and the place alone.

The order of an epoch is a function of (seed, epoch), what happens to a sample is a function of
(seed, epoch, sample, repeat). Neither the number of worker processes, nor that of training
processes, nor a stop and a resumption in the middle of an epoch changes which samples a step sees.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from zoo.errors import ZooError

log = logging.getLogger("zoo")


class SampleKey(NamedTuple):
    """Which sample, and for which time it is seen."""

    epoch: int
    sample: int
    repeat: int = 0


class Source(Protocol):
    """A map-style data set: it knows its length and returns a sample for an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch from ``key``; put their states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """``transform(source[index])``, the transform's randomness fixed by the sample's key."""

    def __init__(self, source: Source, transform: Callable[[Any], Any], seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> Any:
        if isinstance(key, int):  # of a sampler that is not ours
            key = SampleKey(0, key)
        sample = self.source[key.sample]
        with seeded(self.seed, *key):
            return self.transform(sample)


class EpochSampler(Sampler[SampleKey]):
    """The samples that one process sees in one epoch, in order, from any position on.

    Args:
        size: number of samples in the data set.
        batch_size: samples of a step, all processes together; None: evaluation, every sample once
            in order, and no sample twice to fill up.
        seed: with the epoch, it fixes the order.
        repeats: how often a sample comes in a row (repeated augmentation); the epoch keeps its
            length and sees ``size / repeats`` different samples.
        rank, world_size: this process among those that share a step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int | None,
        seed: int = 0,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._start = (0, 0)

    def start_at(self, epoch: int, batches: int) -> None:
        """Begin epoch ``epoch`` after its first ``batches`` batches; other epochs stay whole."""
        self.epoch, self._start = epoch, (epoch, batches)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples of a whole epoch on this process, wherever the iteration starts."""
        if self.batch_size is None:
            return len(range(self.rank, self.size, self.world_size))
        return self.size // self.batch_size * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        if self.batch_size is None:
            yield from (SampleKey(0, i) for i in range(self.rank, self.size, self.world_size))
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        keys = (SampleKey(self.epoch, i, r) for i in order for r in range(self.repeats))
        skip = self._start[1] * self.batch_size if self._start[0] == self.epoch else 0
        stop = self.size // self.batch_size * self.batch_size
        for place, key in enumerate(keys):
            if place == stop:
                return
            if place >= skip and place % self.world_size == self.rank:
                yield key


class DataModule(pl.LightningDataModule, ABC):
    """Training, validation and test batches of one data set.

    A subclass says in :meth:`load` where the samples are, and in the two transforms what becomes of
    one sample.

    Args:
        batch_size: samples of one step, all processes together, so that a run on more devices takes
            the same steps; all training samples where there are fewer.
        eval_batch_size: samples of a batch in evaluation, per process; the batch size by default.
        num_workers: processes that prepare samples, per training process; 0 prepares in place.
        repeats: repeated augmentation (Hoffer et al. 2020), see :class:`EpochSampler`.

    Attributes:
        seed: fixes the order and the augmentation; a recipe's ``seed_everything`` sets it.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, repeats=repeats)
        at_least(0, num_workers=num_workers)
        if eval_batch_size is not None:
            at_least(1, eval_batch_size=eval_batch_size)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.repeats = repeats
        self.seed = 0
        self._sources: dict[str, Source] = {}
        self._start = (0, 0)

    @abstractmethod
    def load(self, split: str) -> Source:
        """The samples of ``"train"``, ``"val"`` or ``"test"``, as they are stored."""

    @abstractmethod
    def train_transform(self, sample: Any) -> Any:
        """A stored sample -> a training sample; random, from the global generators."""

    @abstractmethod
    def eval_transform(self, sample: Any) -> Any:
        """A stored sample -> a sample for evaluation."""

    def source(self, split: str) -> Source:
        """The samples of a split, loaded once."""
        if split not in self._sources:
            source = self.load(split)
            if len(source) == 0:
                raise ZooError(f"{type(self).__name__}: the {split} split holds no samples")
            self._sources[split] = source
        return self._sources[split]

    def facts(self) -> dict[str, Any] | None:
        """What prediction must know of the data that a recipe does not say, as plain values; their
        files may be gone by then. None: nothing."""
        return None

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take what :meth:`facts` of the training data gave."""

    def first_sample(self) -> Any | None:
        """A sample for evaluation, of a split that is loaded; None while there is none."""
        for split in ("val", "test"):
            if split in self._sources:
                dataset = SeededDataset(self._sources[split], self.eval_transform, self.seed)
                return dataset[SampleKey(0, 0)]
        return None

    def setup(self, stage: str) -> None:
        """Load what ``stage`` (fit, validate, test) needs; a batch is no larger than the data."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            size = len(self.source(split))
            if split == "train" and size < self.batch_size:
                self._shrink_batch(size)

    def _shrink_batch(self, size: int) -> None:
        """Let a step take all samples, or as many as make the same even number on each process."""
        world_size = self._world()[1]
        if size < world_size:
            raise ZooError(f"{size} training samples are too few for {world_size} processes")
        even = size // (2 * world_size) * 2 * world_size  # mixup pairs the samples of a process
        fitting = even or world_size
        log.warning(
            "data.init_args.batch_size is %d, but there are only %d training samples: a step takes "
            "%d of them",
            *(self.batch_size, size, fitting),
        )
        self.batch_size = fitting

    def start_at(self, epoch: int, batches: int) -> None:
        """Let training go on in the middle of an epoch; to be called before its loader is made."""
        self._start = (epoch, batches)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented, complete batches of ``batch_size / processes`` samples."""
        world_size = self._world()[1]
        if self.batch_size % world_size:
            raise ZooError(
                f"data.init_args.batch_size is {self.batch_size} for all processes together, which "
                f"{world_size} processes cannot share equally: choose a multiple of {world_size}"
            )
        dataset = SeededDataset(self.source("train"), self.train_transform, self.seed)
        sampler = EpochSampler(
            len(dataset), self.batch_size, self.seed, self.repeats, *self._world()
        )
        sampler.start_at(*self._start)
        return self._loader(dataset, sampler, self.batch_size // world_size)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Test batches in order."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test's, for ``Trainer.predict``."""
        return self.test_dataloader()

    def collate(self, samples: list[Any]) -> Any:
        """Samples -> batch; PyTorch's default unless a subclass says otherwise."""
        return torch.utils.data.default_collate(samples)

    def _eval_dataloader(self, split: str) -> DataLoader:
        self.check_shares(split, len(self.source(split)))
        dataset = SeededDataset(self.source(split), self.eval_transform, self.seed)
        sampler = EpochSampler(
            len(dataset), None, rank=self._world()[0], world_size=self._world()[1]
        )
        return self._loader(dataset, sampler, self.eval_batch_size)

    def check_shares(self, split: str, count: int, what: str = "samples") -> None:
        """Each process must get something to evaluate, else the others wait for it for ever.

        Raises:
            ZooError: there is less than one for each.
        """
        world_size = self._world()[1]
        if count < world_size:
            raise ZooError(
                f"the {split} split has {count} {what}, too few for {world_size} processes: set "
                f"trainer.devices to {count} or fewer"
            )

    def _loader(self, dataset: SeededDataset, sampler: EpochSampler, batch_size: int) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate,
            # a generator of its own: starting an iteration must not move the global one
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def shares(count: int, val: float = 0.1, test: float = 0.1) -> dict[str, list[int]]:
    """Indices of ``train``, ``val`` and ``test`` among samples that come in one part, in order.

    The same for the same number, and spread evenly over the order of the samples. A part that has a
    share gets one sample at least.

    Raises:
        ZooError: there are too few samples.
    """
    sizes = {"val": max(1, round(count * val)) if val else 0}
    sizes["test"] = max(1, round(count * test)) if test else 0
    held_back = sum(sizes.values())
    if count <= held_back:
        raise ZooError(f"{count} samples cannot be shared out: expected {held_back + 1} or more")
    # the last of each of as many equal stretches, taken by test and val in turn
    places = [(i + 1) * count // held_back - 1 for i in range(held_back)] if held_back else []
    order = np.random.RandomState(0).permutation(held_back)
    parts = {"val": sorted(places[i] for i in order[: sizes["val"]])}
    parts["test"] = sorted(places[i] for i in order[sizes["val"] :])
    return {"train": sorted(set(range(count)) - set(places)), **parts}


def at_least(least: int, **settings: int) -> None:
    """Settings of a data module that are counts or sizes must not be smaller.

    Raises:
        ZooError: the first that is.
    """
    for name, value in settings.items():
        if value < least:
            raise ZooError(f"data.init_args.{name} is {value}, expected {least} or more")
