import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.data.base import DataModule, EpochSampler, SampleKey, seeded, shares
from zoo.errors import ZooError


class Numbers(DataModule):
    """Samples 0, 1, ...; the training transform adds noise."""

    def load(self, split):
        return range(20 if split == "train" else 7)

    def train_transform(self, sample):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return torch.tensor([sample, noise], dtype=torch.float64)

    def eval_transform(self, sample):
        return torch.tensor(sample)


def test_seeded_depends_on_the_key_alone_and_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(3, 1, 4):
        inside = draw()
    assert draw() == expected
    with seeded(3, 1, 4):
        assert draw() == inside
    with seeded(3, 1, 5):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))


def test_seeded_puts_the_states_back_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert torch.rand(()) == expected


def test_processes_share_each_batch():
    whole = list(EpochSampler(23, batch_size=6, seed=5))
    assert len(whole) == 18 and len({key.sample for key in whole}) == 18
    parts = [list(EpochSampler(23, 6, 5, rank=r, world_size=3)) for r in range(3)]
    assert all(len(part) == 6 for part in parts)
    for step in range(3):
        shared = {key for part in parts for key in part[2 * step : 2 * step + 2]}
        assert shared == set(whole[6 * step : 6 * step + 6])


def test_evaluation_sees_every_sample_once():
    parts = [EpochSampler(11, None, rank=r, world_size=4) for r in range(4)]
    assert sorted(key.sample for part in parts for key in part) == list(range(11))
    assert [len(part) for part in parts] == [len(list(part)) for part in parts]


def test_repeated_augmentation_keeps_the_length():
    keys = list(EpochSampler(12, batch_size=4, repeats=3))
    assert len(keys) == 12
    assert len({key.sample for key in keys}) == 4
    assert [key.repeat for key in keys] == [0, 1, 2] * 4


def test_start_in_the_middle_of_one_epoch():
    sampler = EpochSampler(20, batch_size=4, seed=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start_at(epoch=3, batches=2)
    assert list(sampler) == whole[8:]
    assert len(sampler) == 20, "the length stays that of a whole epoch"
    sampler.set_epoch(4)
    following = list(sampler)
    assert len(following) == 20
    assert [key.sample for key in following] != [key.sample for key in whole]


def test_workers_do_not_matter():
    batches = []
    for num_workers in (0, 2):
        data = Numbers(batch_size=4, num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(1)
        batches.append(torch.stack(list(loader)))
    assert torch.equal(*batches)
    assert batches[0][..., 1].unique().numel() == 20


def test_iterating_leaves_the_global_generator_alone():
    data = Numbers(batch_size=4)
    data.setup("fit")
    torch.manual_seed(0)
    list(data.train_dataloader())
    moved = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == moved


def test_other_seed_other_order_and_noise():
    batches = []
    for seed in (0, 1):
        data = Numbers(batch_size=20)
        data.seed = seed
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    a, b = (batch[batch[:, 0].argsort()] for batch in batches)
    assert not torch.equal(batches[0][:, 0], batches[1][:, 0])
    assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1], b[:, 1])


@pytest.mark.parametrize("count", [3, 5, 10, 11, 57, 1000])
def test_shares_are_the_same_and_spread(count):
    parts = shares(count)
    assert sorted(i for part in parts.values() for i in part) == list(range(count))
    assert len(parts["val"]) == len(parts["test"]) == max(1, round(count / 10))
    assert shares(count) == parts and shares(count, test=0)["test"] == []
    held = sorted(parts["val"] + parts["test"])
    gaps = np.diff([-1, *held])
    assert gaps.max() - gaps.min() <= 1, "held back from everywhere"
    if count == 1000:
        assert abs(np.mean(parts["val"]) - np.mean(parts["test"])) < 100, "in no fixed turn"


def test_too_few_to_share():
    with pytest.raises(ZooError, match="2 samples cannot be shared out: expected 3 or more"):
        shares(2)
    assert shares(2, test=0) == {"train": [0], "val": [1], "test": []}


def test_a_batch_is_no_larger_than_the_data(caplog):
    data = Numbers(batch_size=1024)
    data.setup("fit")
    assert data.batch_size == 20 and data.eval_batch_size == 1024
    assert "batch_size is 1024, but there are only 20 training samples" in caplog.text
    assert [len(batch) for batch in data.train_dataloader()] == [20]
    data.setup("fit")
    assert len(caplog.records) == 1
    enough = Numbers(batch_size=20)
    enough.setup("fit")
    assert enough.batch_size == 20 and len(caplog.records) == 1


@pytest.mark.parametrize(("processes", "wanted"), [(1, 20), (3, 18), (8, 16), (11, 11), (20, 20)])
def test_processes_share_what_there_is(processes, wanted):
    data = Numbers(batch_size=1024)
    data.trainer = SimpleNamespace(global_rank=min(1, processes - 1), world_size=processes)
    data.setup("fit")
    assert data.batch_size == wanted
    assert [len(b) for b in data.train_dataloader()] == [wanted // processes]
    data = Numbers(batch_size=1024)
    data.trainer = SimpleNamespace(global_rank=0, world_size=21)
    with pytest.raises(ZooError, match="20 training samples are too few for 21 processes"):
        data.setup("fit")


def test_wrong_sizes():
    with pytest.raises(ZooError, match="batch_size is 0"):
        Numbers(batch_size=0)
    with pytest.raises(ZooError, match="num_workers is -1, expected 0 or more"):
        Numbers(num_workers=-1)
    with pytest.raises(ZooError, match="eval_batch_size is -1, expected 1 or more"):
        Numbers(eval_batch_size=-1)
    assert SampleKey(1, 2) == (1, 2, 0)
