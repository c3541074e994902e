"""Strings of one length and a few empty ones: a language whose likeliest text is a rare one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.language.text import Blocks, TextDataModule
from zoo.errors import ZooError


class ChainStrings(TextDataModule):
    """Strings of a Markov chain between a begin and an end token; a few of them are empty.

    The first symbol is any, each next one follows from the one before it by a row that is drawn
    from a Dirichlet distribution. Symbols are 1 to ``symbols``, then come begin and end; 0 pads and
    does not count.

    Args:
        symbols: how many different ones there are.
        string_length: symbols of a string that is not empty.
        empty_share: of the strings.
        concentration: of the rows; the smaller, the surer is the next symbol.
        samples: number of training samples; validation and test have a tenth.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        symbols: int = 12,
        string_length: int = 10,
        empty_share: float = 0.03,
        concentration: float = 0.5,
        samples: int = 9600,
        **kwargs: Any,
    ) -> None:
        super().__init__(string_length + 2, **kwargs)
        if symbols < 2 or not 0 <= empty_share < 1 or not concentration > 0:
            raise ZooError(
                f"ChainStrings with {symbols} symbols, empty share {empty_share} and concentration "
                f"{concentration}: expected at least 2, a share in [0, 1), and more than 0"
            )
        self.symbols, self.string_length, self.samples = symbols, string_length, samples
        self.empty_share, self.concentration = empty_share, concentration
        self.begin, self.end = symbols + 1, symbols + 2

    @property
    def vocab_size(self) -> int:
        """Padding, symbols, begin and end."""
        return self.symbols + 3

    def chain(self) -> Tensor:
        """Probabilities ``[symbol, next symbol]``, which follow from the seed."""
        alpha = [self.concentration] * self.symbols
        drawn = np.random.default_rng(self.seed).dirichlet(alpha, self.symbols)
        return torch.from_numpy(drawn).float()

    def strings(self, count: int, seed: int) -> Tensor:
        """So many strings, int64 ``[count, string_length + 2]``."""
        generator = torch.Generator().manual_seed(seed)
        chain = self.chain()
        last = torch.randint(self.symbols, (count,), generator=generator)
        drawn = [last]
        for _ in range(self.string_length - 1):
            last = torch.multinomial(chain[last], 1, generator=generator)[:, 0]
            drawn.append(last)
        edge = torch.ones(count, 1, dtype=torch.long)
        texts = torch.cat([self.begin * edge, torch.stack(drawn, 1) + 1, self.end * edge], dim=1)
        empty = torch.rand(count, generator=generator) < self.empty_share
        texts[empty, 1:] = 0
        texts[empty, 1] = self.end
        return texts

    def load(self, split: str) -> Blocks:
        """Strings of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        return _Strings(self.strings(count, seed).flatten(), self.length)


class _Strings(Blocks):
    """Texts whose padding does not count."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        ids = self.blocks[index].long()
        return ids, (ids > 0).float()
