"""Associative recall as text: values of keys that were there before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.data.base import Source
from zoo.data.language.text import TextDataModule
from zoo.data.synthetic.associative_recall import multi_query_recall


class AssociativeRecall(TextDataModule):
    """Pairs of a key and its value, then every key again before its value, which alone counts.

    Tokens are 0 for padding in front of fewer pairs, then ``keys`` keys and as many values.

    Args:
        pairs: of a sample in training, from and to.
        test_pairs: the same in validation and test.
        keys: how many different ones there are.
        samples: number of training samples; validation and test have a tenth.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        pairs: tuple[int, int] = (2, 10),
        test_pairs: tuple[int, int] = (10, 10),
        keys: int = 32,
        samples: int = 16384,
        **kwargs: Any,
    ) -> None:
        super().__init__(4 * max(*pairs, *test_pairs), **kwargs)
        for low, high in (pairs, test_pairs):
            multi_query_recall(0, low, keys), multi_query_recall(0, high, keys)  # refuse
        self.pairs, self.test_pairs, self.keys, self.samples = pairs, test_pairs, keys, samples

    @property
    def vocab_size(self) -> int:
        """Padding, keys and values."""
        return 2 * self.keys + 1

    def load(self, split: str) -> Source:
        """Samples of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        drawn = torch.Generator().manual_seed(seed)
        low, high = self.pairs if split == "train" else self.test_pairs
        sizes = torch.randint(low, high + 1, (count,), generator=drawn)
        ids = torch.zeros(count, self.length, dtype=torch.long)
        mask = torch.zeros(count, self.length)
        for size in range(low, high + 1):
            rows = sizes == size
            tokens, known = multi_query_recall(int(rows.sum()), size, self.keys, drawn)
            ids[rows, -4 * size :] = tokens + 1
            mask[rows, -4 * size :] = known.float()
        return _Known(ids, mask)


class _Known(Source):
    """Samples with their masks."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, mask

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.ids[index], self.mask[index]
