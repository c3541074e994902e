"""Text for language models: blocks of tokens from Python's own files, and conversations."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zoo.data.base import DataModule, Source
from zoo.data.formats.files import reading
from zoo.data.formats.tokenizers import load_tokenizer, vocabulary_size
from zoo.errors import ZooError
from zoo.models.language._chat import vicuna_text

#: Splits and the shares of all documents that go into them.
SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}

#: Characters that are read of one file of Python's library; the longest has 750,000.
LONGEST_FILE = 20_000


class TextDataModule(DataModule):
    """Samples are ``(ids, mask)``: int64 ``[length]``, and float ``[length]`` with 1 where a token
    counts as something to be predicted.

    Where ``separate`` is set, a third part says which document a token belongs to, int32
    ``[length]``, for models that let nothing pass from one to the next; the first token of a
    document does not count then.

    Args:
        length: tokens of a sample.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    #: None where the tokens stand for themselves.
    tokenizer: PreTrainedTokenizerBase | None = None
    #: Whether samples say which document a token belongs to.
    separate: bool = False

    def __init__(self, length: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if length < 2:
            raise ZooError(f"data.init_args.length is {length}, expected 2 or more")
        self.length = length

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of different tokens."""

    def train_transform(self, sample: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As it is."""
        return sample

    eval_transform = train_transform


class Blocks(Source):
    """A long row of tokens, cut into samples.

    Args:
        tokens: ``[N]``.
        length: of a sample.
        owners: ``[N]``, the document of each token, if samples shall keep them apart.
    """

    def __init__(self, tokens: Tensor, length: int, owners: Tensor | None = None) -> None:
        whole = len(tokens) // length * length
        self.blocks = tokens[:whole].view(-1, length)
        self.owners = None if owners is None else owners[:whole].view(-1, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        block = self.blocks[index].long()
        if self.owners is None:
            return block, torch.ones(len(block))
        return block, *packed(self.owners[index])


def packed(owners: Tensor) -> tuple[Tensor, Tensor]:
    """Mask, and documents counted from 0, of a block whose tokens belong to ``owners`` ``[T]``."""
    begins = torch.zeros(len(owners), dtype=torch.int32)
    begins[1:] = owners[1:] != owners[:-1]
    return 1.0 - begins, begins.cumsum(0, dtype=torch.int32)


class PythonSource(TextDataModule):
    """The source of Python's own standard library, with a byte-pair tokenizer trained on it.

    Files are shared out among the splits by their names, and of each the beginning is read, so that
    no split is one long file for the most part. Which text it is depends on the version of Python.

    Args:
        length: tokens of a sample.
        vocab_size: of the tokenizer.
        max_bytes: how much text is read.
        separate: keep the files apart, see :class:`TextDataModule`.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        length: int = 256,
        vocab_size: int = 1024,
        max_bytes: int = 3_000_000,
        separate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(length, **kwargs)
        self._vocab_size, self.max_bytes, self.separate = vocab_size, max_bytes, separate
        self._texts: dict[str, list[str]] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self._vocab_size

    def texts(self, split: str) -> list[str]:
        """The files of a split."""
        if self._texts is None:
            self._texts = self._read()
        return self._texts[split]

    def _read(self) -> dict[str, list[str]]:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = ("test", "tests", "idle_test", "site-packages", "lib2to3", "dist-packages")
        texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        files = [
            path
            for path in root.rglob("*.py")
            if not set(skipped) & set(path.relative_to(root).parts[:-1])
        ]
        left = self.max_bytes
        # by hash: a mixture of everything however little is read
        for path in sorted(files, key=lambda path: _share(path.relative_to(root).as_posix())):
            text = path.read_text(encoding="utf-8", errors="ignore")[:LONGEST_FILE]
            if left <= 0:
                break
            left -= len(text)
            share = _share("split " + path.relative_to(root).as_posix())
            for split, (low, high) in SPLITS.items():
                if low <= share < high:
                    texts[split].append(text)
        return texts

    def load(self, split: str) -> Blocks:
        """Tokenize a split."""
        if self.tokenizer is None:
            self.tokenizer = train_tokenizer(self.texts("train"), self._vocab_size)
        texts = self.texts(split)
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        tokens = torch.tensor([token for text in ids for token in text], dtype=torch.long)
        lengths = torch.tensor([len(text) for text in ids], dtype=torch.long)
        owners = torch.arange(len(ids)).repeat_interleave(lengths)
        return Blocks(tokens, self.length, owners if self.separate else None)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer; every text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


class Conversations(TextDataModule):
    """Conversations as ShareGPT's files hold them; only the assistant's words count.

    The file is a JSON list of ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt",
    "value": ...}, ...]}``, or of Alpaca's ``{"instruction", "input", "output"}``. The text is
    written as Vicuna writes it.

    Args:
        file: the JSON file.
        tokenizer: folder or hub name.
        length: longest sample; longer ones are cut, shorter ones padded.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(self, file: Path, tokenizer: str, length: int = 2048, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)
        self.file, self._tokenizer = Path(file), tokenizer
        self._conversations: list[list[tuple[str, str]]] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return vocabulary_size(self._load_tokenizer(), self._tokenizer)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self._tokenizer)
            if not self.tokenizer.is_fast:
                raise ZooError(
                    f"data.init_args.tokenizer '{self._tokenizer}' does not say which characters "
                    "its tokens stand for: expected one with a tokenizer.json"
                )
        return self.tokenizer

    def load(self, split: str) -> list[list[tuple[str, str]]]:
        """The turns ``(speaker, text)`` of each conversation of a split."""
        if self._conversations is None:
            self._conversations = read_conversations(self.file)
        low, high = (round(share * len(self._conversations)) for share in SPLITS[split])
        return self._conversations[low:high]

    def train_transform(self, sample: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """Turns -> tokens and mask."""
        tokenizer = self._load_tokenizer()
        text, spans = vicuna_text(sample, tokenizer.eos_token or "")
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids = list(encoding["input_ids"])
        mask = [
            float(any(start < last and first < stop for start, stop in spans))
            for first, last in encoding["offset_mapping"]
        ]
        padding = self.length - len(ids)
        pad = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        row = torch.tensor((ids + [pad] * padding)[: self.length])
        return row, torch.tensor((mask + [0.0] * padding)[: self.length])

    eval_transform = train_transform


def read_conversations(file: Path) -> list[list[tuple[str, str]]]:
    """Read ShareGPT's or Alpaca's layout: lists of ``("user" or "assistant", text)``."""
    with reading(file, "a JSON list of conversations"):
        content = json.loads(file.read_text())
    if not isinstance(content, list):
        raise ZooError(f"{file}: expected a JSON list of conversations")
    conversations = []
    for number, item in enumerate(content):
        try:
            turns = _turns(item)
        except (TypeError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ZooError(
                f"{file}: entry {number} cannot be read ({reason}), expected conversations, turns "
                "with from and value (ShareGPT), or instruction and output (Alpaca)"
            ) from error
        if turns:
            conversations.append(turns)
    return conversations


def _turns(item: dict[str, Any]) -> list[tuple[str, str]]:
    """One entry of such a file; a wrong one is a TypeError or a KeyError."""
    if "conversations" in item:
        turns = [
            ("user" if t["from"] in ("human", "user") else "assistant", t["value"])
            for t in item["conversations"]
            if t["from"] != "system"
        ]
    else:
        question = [item["instruction"], item.get("input")]
        turns = [("user", "\n".join(filter(None, question))), ("assistant", item["output"])]
    for _, text in turns:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
    return turns
