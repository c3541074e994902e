"""Formal languages as data: questions about a sequence, answered after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.data.base import Source
from zoo.data.language.text import TextDataModule
from zoo.data.synthetic.formal_languages import (
    GROUPS,
    counting,
    group_words,
    modular_arithmetic,
    parity,
)
from zoo.errors import ZooError, check_choice

Maker = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
#: Language -> what draws sequences and their answers, symbols, answers.
LANGUAGES: dict[str, tuple[Maker, int, int]] = {
    "parity": (parity, 2, 2),
    "counting": (lambda count, length, drawn: counting(count, length, 3, drawn), 2, 3),
    "modular_arithmetic": (lambda count, n, drawn: modular_arithmetic(count, n, 5, drawn), 8, 5),
    **{
        name: (
            lambda count, length, drawn, name=name: group_words(count, length, name, drawn),
            size,
            size,
        )
        for name, size in zip(GROUPS, (6, 24, 120, 60), strict=True)
    },
}
PAD, ASK = 0, 1


class FormalLanguage(TextDataModule):
    """Sequences of a formal language of all lengths in a range; only the answer after it counts.

    A sample is padding, the sequence, a question mark and the answer. Tokens are 0 for padding, 1
    for the question, then the symbols, then the answers. Training sees lengths of one range,
    validation and test those of another, so that a rule that holds beyond what was seen is told
    from one that does not.

    Args:
        language: "parity" or "counting" (ones modulo 3) of bits, "modular_arithmetic" (digits
            modulo 5 with +, - and *), or the words of a group of permutations: "S3", "S4", "S5" or
            "A5"; see :mod:`zoo.data.synthetic.formal_languages`.
        lengths: of sequences in training, from and to.
        test_lengths: the same in validation and test.
        samples: number of training samples; validation and test have a tenth.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        language: str = "parity",
        lengths: tuple[int, int] = (3, 20),
        test_lengths: tuple[int, int] = (40, 64),
        samples: int = 8192,
        **kwargs: Any,
    ) -> None:
        super().__init__(max(*lengths, *test_lengths) + 2, **kwargs)
        check_choice("data.init_args.language", language, LANGUAGES)
        for name, (low, high) in (("lengths", lengths), ("test_lengths", test_lengths)):
            if not 1 <= low <= high:
                raise ZooError(
                    f"data.init_args.{name} is [{low}, {high}], expected two lengths from 1 on, "
                    "the smaller one first"
                )
        self.language, self.samples = language, samples
        self.lengths, self.test_lengths = lengths, test_lengths

    @property
    def vocab_size(self) -> int:
        """Padding, the question, symbols and answers."""
        _, symbols, answers = LANGUAGES[self.language]
        return 2 + symbols + answers

    def load(self, split: str) -> Source:
        """Samples of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        drawn = torch.Generator().manual_seed(seed)
        low, high = self.lengths if split == "train" else self.test_lengths
        maker, symbols, _ = LANGUAGES[self.language]
        words, answers = maker(count, high, drawn)
        lengths = torch.randint(low, high + 1, (count, 1), generator=drawn)
        ids = torch.full((count, self.length), PAD, dtype=torch.int16)
        # what is kept ends before the question: the first `lengths` symbols, moved to the right
        place = torch.arange(high) + self.length - 2 - lengths
        kept = torch.arange(high) < lengths
        rows = torch.arange(count)[:, None].expand_as(kept)
        ids[rows[kept], place[kept]] = (2 + words[kept]).short()
        ids[:, -2] = ASK
        ids[:, -1] = (2 + symbols + answers.gather(1, lengths - 1)[:, 0]).short()
        return _Answered(ids)


class _Answered(Source):
    """Samples of which the last token counts alone."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.mask = torch.zeros(ids.shape[1])
        self.mask[-1] = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.ids[index].long(), self.mask
