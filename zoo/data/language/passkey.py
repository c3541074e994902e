"""Passkey retrieval: a number in a long text of no interest, asked for at the end."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zoo.data.base import Source
from zoo.data.formats.tokenizers import load_tokenizer, vocabulary_size
from zoo.data.language.text import TextDataModule, train_tokenizer
from zoo.errors import ZooError

# the words of the benchmark (arXiv 2305.16300), without which its numbers cannot be compared
TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
KEY = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


class Passkey(TextDataModule):
    """Texts of ``length`` tokens that end with the number in them, whose tokens alone count.

    The number stands in turn at ``depths`` places, (i + 0.5) / depths of the filler; where it
    stands, and what it is, follows from the seed and the sample.

    Args:
        tokenizer: folder or hub name; None trains a byte-pair tokenizer on such texts.
        digits: of the number.
        depths: so many places.
        samples: number of training samples; validation and test have a tenth.
        length: tokens of a text, the number after the question included.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        digits: int = 5,
        depths: int = 10,
        samples: int = 2000,
        length: int = 1024,
        **kwargs: object,
    ) -> None:
        super().__init__(length, **kwargs)  # type: ignore[arg-type]
        for name, value in (("digits", digits), ("depths", depths), ("samples", samples)):
            if value < 1:
                raise ZooError(f"data.init_args.{name} is {value}, expected 1 or more")
        self._tokenizer, self.digits, self.depths = tokenizer, digits, depths
        self.samples = samples

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return vocabulary_size(self._load_tokenizer(), str(self._tokenizer))

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None and self._tokenizer is None:
            # bytes, and the words of the filler: no two digits are one token
            self.tokenizer = train_tokenizer([TASK + FILLER + KEY + QUESTION], 320)
        elif self.tokenizer is None:
            self.tokenizer = load_tokenizer(str(self._tokenizer))
        return self.tokenizer

    def _ids(self, text: str) -> list[int]:
        return self._load_tokenizer()(text, add_special_tokens=False)["input_ids"]

    def text(self, key: str, depth: float) -> tuple[Tensor, Tensor]:
        """Tokens and mask ``[length]``.

        Args:
            key: the number.
            depth: where it stands, from 0 (before the filler) to 1.

        Raises:
            ZooError: if ``length`` leaves no room.
        """
        task, filler, question = (self._ids(text) for text in (TASK, FILLER, QUESTION))
        needle, answer = self._ids(KEY.format(key=key)), self._ids(f" {key}")
        room = self.length - len(task) - len(needle) - len(question) - len(answer)
        if room < 0:
            raise ZooError(
                f"data.init_args.length is {self.length}: expected {self.length - room} or more, "
                "which task, number and question need"
            )
        words = (filler * (room // len(filler) + 1))[:room]
        place = round(depth * room)
        ids = [*task, *words[:place], *needle, *words[place:], *question, *answer]
        mask = torch.zeros(self.length)
        mask[-len(answer) :] = 1
        return torch.tensor(ids), mask

    def load(self, split: str) -> Source:
        """Texts of a split; its seed is its own."""
        count = self.samples if split == "train" else max(1, self.samples // 10)
        seed = 1000 * self.seed + ("train", "val", "test").index(split)
        drawn = torch.Generator().manual_seed(seed)
        digits = torch.randint(10, (count, self.digits), generator=drawn)
        self.text("0" * self.digits, 0.5)  # room is missed before training begins
        return _Texts(self, ["".join(map(str, row)) for row in digits.tolist()])


class _Texts(Source):
    """Written when they are asked for, as long ones fill memory."""

    def __init__(self, data: Passkey, keys: list[str]) -> None:
        self.data, self.keys = data, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        place = index % self.data.depths
        return self.data.text(self.keys[index], (place + 0.5) / self.data.depths)
