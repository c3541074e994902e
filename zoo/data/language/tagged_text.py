"""Texts whose words have a tag each: JSON lines, CoNLL's layout, hub data sets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.data.formats.conll import CONLL_SUFFIXES, read_conll, write_conll
from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.text_rows import Row, read_rows
from zoo.data.language._text_tables import TextTables
from zoo.data.synthetic.named_sentences import named_sentence
from zoo.errors import ZooError, suggest

#: The class of tokens that have no tag, which losses leave out.
IGNORED = -100


class TaggedRow(NamedTuple):
    """A stored sample.

    Attributes:
        words: of a sentence.
        tags: a class for each.
    """

    words: tuple[str, ...]
    tags: tuple[int, ...]


class TaggedText(TextTables):
    """Sentences of words with a tag each.

    A batch: ``input_ids``, ``attention_mask`` and, of tokenizers that have them,
    ``token_type_ids``, int64 ``[B, L]``; ``words`` ``[B, L]``, at the first piece of each word the
    word's number in its sentence, elsewhere -1; ``labels`` ``[B, L]``, there its tag, elsewhere
    -100; ``tags``, of each sentence the tags of all words, also of those that were cut off.

    Args:
        source: a folder with ``train``, ``val`` (or ``dev``, ``valid``, ``validation``) and
            ``test`` as ``.jsonl`` (``{"tokens": [...], "tags": [...]}``) or in CoNLL's layout
            (``.conll``, ``.bio``, ``.iob``, ``.iob2``, ``.txt``; first column the token, last one
            the tag), or ``hf://owner/name`` with ``/configuration`` behind it if there are
            several. Without ``test`` the validation samples are the test.
        token_column: of the words, in JSON lines and of the hub.
        tag_column: of their tags.
        class_names: the tags in order; None: those of the training samples, O first, others sorted.
        tokenizer: folder or hub name, one of those with a Rust half, which know what word a piece
            belongs to; None trains word pieces on the training texts.
        vocab_size: of a tokenizer that is trained.
        length: most tokens of a sample, special ones included.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    suffixes = (".jsonl", ".json", *CONLL_SUFFIXES)

    def __init__(
        self,
        source: str,
        token_column: str = "tokens",
        tag_column: str = "tags",
        class_names: Sequence[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        length: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            source,
            tag_column,
            class_names=class_names,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            length=length,
            **kwargs,
        )
        self.token_column = token_column

    def _find_classes(self) -> list[str]:
        found = {tag for row in self.rows("train") for tag in self._list(row, self.label_column)}
        return sorted(found, key=lambda tag: (tag != "O", tag))

    def _train_texts(self) -> Iterator[str]:
        return (" ".join(row.words) for row in self.source("train"))

    def read_file(self, path: Path) -> list[Row]:
        """The sentences of a file."""
        if path.suffix.lower() in CONLL_SUFFIXES:
            return read_conll(path, self.token_column, self.label_column)
        return read_rows(path)

    def load(self, split: str) -> list[TaggedRow]:
        """The samples of a split."""
        return [self._sample(row) for row in self.rows(split)]

    def _sample(self, row: Row) -> TaggedRow:
        words, tags = self._list(row, self.token_column), self._list(row, self.label_column)
        if len(words) != len(tags):
            raise ZooError(
                f"{row.place}: {len(words)} {self.token_column} and {len(tags)} "
                f"{self.label_column}, expected as many"
            )
        numbers = {name: number for number, name in enumerate(self.class_names)}
        for tag in tags:
            if tag not in numbers:
                raise ZooError(
                    f"{row.place}: the tag {tag!r} is unknown; {suggest(tag, self.class_names)}"
                )
        return TaggedRow(tuple(words), tuple(numbers[tag] for tag in tags))

    def _list(self, row: Row, column: str) -> list[str]:
        value = row.get(column)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            shown = "missing" if value is None else repr(value)[:60]
            raise ZooError(
                f"{row.place}: {column} is {shown}, expected a list of texts, one for each word"
            )
        return value

    def train_transform(self, sample: TaggedRow) -> TaggedRow:
        """As it is: words become tokens a batch at a time."""
        return sample

    eval_transform = train_transform

    def collate(self, samples: Sequence[TaggedRow]) -> dict[str, Any]:
        """Tokens of a batch with the tags of the first piece of each word."""
        batch = self.encode([sample.words for sample in samples])
        words = batch["words"]
        labels = torch.full_like(words, IGNORED)
        for row, sample in enumerate(samples):
            first = words[row] >= 0
            labels[row, first] = torch.tensor(sample.tags)[words[row, first]]
        return {**batch, "labels": labels, "tags": [list(sample.tags) for sample in samples]}

    def encode(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Sentences as ``input_ids``, masks and ``words`` ``[B, L]``; cut at ``length`` tokens."""
        if not self.tokenizer.is_fast:
            raise ZooError(
                f"data.init_args.tokenizer '{self._tokenizer_source}' does not say which word a "
                "piece belongs to: expected one with tokenizer.json"
            )
        encoded = self.tokenizer(
            [list(words) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=self.length,
            padding=True,
            return_tensors="pt",
        )
        words = torch.full_like(encoded["input_ids"], -1)
        for row in range(len(sentences)):
            before: int | None = None
            for place, word in enumerate(encoded.word_ids(row)):
                if word is not None and word != before:
                    words[row, place] = word
                before = word
        return {**encoded, "words": words}

    def tokens_of(self, words: Sequence[str]) -> int:
        """How many tokens a sentence has, special ones included, before it is cut."""
        return len(self.tokenizer(list(words), is_split_into_words=True)["input_ids"])


@dataclass
class SmallNames(SmallSample):
    """How many sentences with names to make in CoNLL's layout.

    Args:
        train, val, test: of each split.
        size: has no meaning here.
        seed: of the maker.
    """


#: Names of CoNLL-2003's files, as they were published and as they are passed on.
CONLL_FILES = {
    "train": ("eng.train", "train.txt"),
    "val": ("eng.testa", "valid.txt"),
    "test": ("eng.testb", "test.txt"),
}


class Conll2003(TaggedText):
    """Named entities of CoNLL-2003 (arXiv cs/0306050) in the layout of its files.

    Args:
        root: folder with ``eng.train``, ``eng.testa`` and ``eng.testb``, or ``train.txt``,
            ``valid.txt`` and ``test.txt``.
        sample: make a small data set of the same layout in ``root`` if there is none; null: never.
        kwargs: see :class:`TaggedText`.
    """

    def __init__(self, root: str, sample: SmallNames | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.sample = sample

    def read(self, split: str) -> list[Row]:
        """The sentences of a split; makes the small data set first where that is wanted."""
        root = Path(self.place).expanduser()
        if self.sample is not None:
            make_once(self, root, self.sample)
        for name in CONLL_FILES[split]:
            if (root / name).is_file():
                return read_conll(root / name, self.token_column, self.label_column)
        raise ZooError(f"data.init_args.root: {root} holds no {' or '.join(CONLL_FILES[split])}")

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write sentences with names."""
        draw = random.Random(sample.seed)
        for split, count in (("train", sample.train), ("val", sample.val), ("test", sample.test)):
            sentences = [named_sentence(draw) for _ in range(count)]
            write_conll(folder / CONLL_FILES[split][1], sentences)
