"""Made languages whose best possible predictions are known in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.data.language.text import Blocks, TextDataModule
from zoo.errors import ZooError


class UnitLanguage(TextDataModule):
    """Units of one branch token and a few tokens that it fixes.

    The branch is drawn from ``branches`` with equal probability; the ``tail`` tokens after it are
    its own. Tokens start at 1. With 8 branches and 3 tokens after each, the best top-1 accuracy i +
    1 tokens ahead, without seeing those between, is 0.781, 0.5625, 0.344, 0.125, 0.125.

    Args:
        branches, tail: shape of a unit.
        noisy_share: share of stretches in which the tail is random as well. A marker before each
            unit says of which kind its stretch is. 0: there are no stretches and no markers.
        stretch: units of a stretch.
        second_code: such stretches are not random but follow a second code: every branch has the
            tail of the next one.
        shared_tail: the tail's tokens are not a branch's own: all branches write with the same
            symbols, so that the next one follows from the branch and the distance to it, not from
            the last token.
        samples: number of training samples; validation and test have a tenth.
        length: tokens of a sample.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        branches: int = 8,
        tail: int = 3,
        noisy_share: float = 0.0,
        stretch: int = 8,
        second_code: bool = False,
        shared_tail: bool = False,
        samples: int = 4096,
        length: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(length, **kwargs)
        if branches < 2 or tail < 1 or not 0 <= noisy_share < 1:
            raise ZooError(
                f"UnitLanguage with {branches} branches, {tail} tokens after each and noisy share "
                f"{noisy_share}: expected at least 2, at least 1, and a share in [0, 1)"
            )
        self.branches, self.tail, self.samples = branches, tail, samples
        self.noisy_share, self.stretch, self.second_code = noisy_share, stretch, second_code
        self.shared_tail = shared_tail

    @property
    def vocab_size(self) -> int:
        """Padding, branches, the tokens after them, and two markers."""
        return 1 + self.branches * (1 + self.tail) + 2

    def text(self, units: int, seed: int) -> Tensor:
        """A text of so many units, int64."""
        generator = torch.Generator().manual_seed(seed)
        branch = torch.randint(self.branches, (units,), generator=generator)
        # [units, tail]; the tail of branch b is b's own tokens
        owners = branch[:, None].expand(-1, self.tail).clone()
        if self.noisy_share == 0:
            return self._write(branch, owners).flatten()
        stretches = -(-units // self.stretch)
        noisy = torch.rand(stretches, generator=generator) < self.noisy_share
        rows = noisy.repeat_interleave(self.stretch)[:units]
        noise = torch.randint(self.branches, (int(rows.sum()), self.tail), generator=generator)
        owners[rows] = (owners[rows] + 1) % self.branches if self.second_code else noise
        markers = self.vocab_size - 2 + rows.long()[:, None]
        return torch.cat([markers, self._write(branch, owners)], dim=1).flatten()

    def _write(self, branch: Tensor, owners: Tensor) -> Tensor:
        place = torch.arange(self.tail)
        if self.shared_tail:  # an odd factor: at each place the symbol belongs to one branch
            symbols = (owners * (2 * place + 1) + 3 * place) % self.branches
            return torch.cat([1 + branch[:, None], 1 + self.branches + symbols], dim=1)
        offsets = 1 + self.branches + place
        return torch.cat([1 + branch[:, None], offsets + self.tail * owners], dim=1)

    def load(self, split: str) -> Blocks:
        """Texts of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        unit = 1 + self.tail + (self.noisy_share > 0)
        units = -(-count * self.length // unit)
        return Blocks(self.text(units, seed), self.length)


class PeriodLanguage(TextDataModule):
    """A random block of tokens, repeated to the end of the text: each text has a block of its own.

    From the second block on every token is known from the one ``period`` before it, and only from
    there: a single token says little. The first block, of which nothing can be known, does not
    count. Tokens start at 1.

    Args:
        period: tokens of a block.
        symbols: how many different tokens there are.
        samples: number of training samples; validation and test have a tenth.
        length: tokens of a sample.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        period: int = 16,
        symbols: int = 8,
        samples: int = 4096,
        length: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(length, **kwargs)
        if period < 1 or symbols < 2:
            raise ZooError(
                f"PeriodLanguage with blocks of {period} tokens and {symbols} symbols: expected at "
                "least 1 and 2"
            )
        self.period, self.symbols, self.samples = period, symbols, samples

    @property
    def vocab_size(self) -> int:
        """Padding and symbols."""
        return 1 + self.symbols

    def texts(self, count: int, seed: int) -> Tensor:
        """So many texts, int64 ``[count, length]``."""
        generator = torch.Generator().manual_seed(seed)
        blocks = torch.randint(self.symbols, (count, self.period), generator=generator) + 1
        return blocks.repeat(1, -(-self.length // self.period))[:, : self.length]

    def load(self, split: str) -> Blocks:
        """Texts of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        return _Repeated(self.texts(count, seed).flatten(), self.length, self.period)


class _Repeated(Blocks):
    """Texts of which the first block does not count."""

    def __init__(self, tokens: Tensor, length: int, period: int) -> None:
        super().__init__(tokens, length)
        self.mask = (torch.arange(length) >= period).float()

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.blocks[index].long(), self.mask.clone()
