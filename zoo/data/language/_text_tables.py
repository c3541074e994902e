"""What readers of tables of texts share: where a split's rows are, classes, a tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from zoo.data.base import DataModule, at_least
from zoo.data.formats.text_rows import TABLE_SUFFIXES, Row, read_rows
from zoo.data.formats.tokenizers import (
    load_tokenizer,
    train_wordpiece,
    vocabulary_size,
    wordpiece,
)
from zoo.data.hub import open_dataset
from zoo.errors import ZooError

#: Names that the files of a split may have, the first that exists counts.
FILES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}


class TextTables(DataModule):
    """Rows of a folder of tables, or of a hub data set, with names of classes and a tokenizer.

    Args:
        source: a folder, or ``hf://owner/name`` with ``/configuration`` behind it.
        label_column: of the class or the classes.
        class_names: in order; None: those of the training samples.
        tokenizer: folder or hub name; None trains word pieces on the training texts.
        vocab_size: of a tokenizer that is trained.
        length: most tokens of a sample, special ones included.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    #: Endings of the files of a folder, in the order in which they are looked for.
    suffixes: tuple[str, ...] = TABLE_SUFFIXES

    def __init__(
        self,
        source: str,
        label_column: str,
        class_names: Sequence[str] | None,
        tokenizer: str | None,
        vocab_size: int,
        length: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(4, length=length)
        at_least(8, vocab_size=vocab_size)
        self.place, self.label_column = source, label_column
        self._class_names = None if class_names is None else list(class_names)
        self._tokenizer_source, self._vocab_size = tokenizer, vocab_size
        self.length = length
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tables: dict[str, list[Row]] = {}

    @abstractmethod
    def _find_classes(self) -> list[str]:
        """Names of the classes of the training samples, in order."""

    @abstractmethod
    def _train_texts(self) -> Iterator[str]:
        """What a tokenizer is trained on."""

    # labels and tokens

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order."""
        if self._class_names is None:
            found = self._find_classes()  # reads the rows: the hub may say the names
            self._class_names = self._class_names or found
        return self._class_names

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded or trained when it is first asked for."""
        if self._tokenizer is None:
            if self._tokenizer_source is not None:
                self._tokenizer = load_tokenizer(self._tokenizer_source)
            else:
                self._tokenizer = train_wordpiece(self._train_texts(), self._vocab_size)
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Rows of an embedding that the tokens need."""
        if self._tokenizer_source is None:
            return self._vocab_size
        return vocabulary_size(self.tokenizer, self._tokenizer_source)

    def facts(self) -> dict[str, Any] | None:
        """Names of the classes, and a tokenizer that was trained."""
        trained = self._tokenizer_source is None
        written = self.tokenizer.backend_tokenizer.to_str() if trained else None
        return {"class_names": list(self.class_names), "tokenizer": written}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take both."""
        self._class_names = list(facts["class_names"])
        if facts["tokenizer"] is not None:
            self._tokenizer = wordpiece(facts["tokenizer"])

    # rows

    def rows(self, split: str) -> list[Row]:
        """The rows of a split, read once."""
        if split not in self._tables:
            self._tables[split] = self.read(split)
        return self._tables[split]

    def read(self, split: str) -> list[Row]:
        """The rows of a split, from where they are."""
        if self.place.startswith("hf://"):
            return self._from_hub(split)
        root = Path(self.place).expanduser()
        names = FILES[split] + (FILES["val"] if split == "test" else ())
        for name in names:
            for ending in self.suffixes:
                if (root / f"{name}{ending}").is_file():
                    return self.read_file(root / f"{name}{ending}")
        raise ZooError(
            f"data.init_args.source: {root} holds no {' or '.join(names)} that ends in "
            + " ".join(self.suffixes)
        )

    def read_file(self, path: Path) -> list[Row]:
        """The rows of a file."""
        return read_rows(path)

    def _from_hub(self, split: str) -> list[Row]:
        owner, name, configuration = [*self.place.removeprefix("hf://").split("/", 2), "", ""][:3]
        found = open_dataset(f"{owner}/{name}", configuration or None)
        names = FILES[split] + (FILES["val"] if split == "test" else ())
        part = next((found[known] for known in names if known in found), None)
        if part is None:
            raise ZooError(f"data.init_args.source: {self.place} has no split {' or '.join(names)}")
        feature = part.features.get(self.label_column)
        feature = getattr(feature, "feature", feature)  # of a list, what it is a list of
        if self._class_names is None and hasattr(feature, "names"):
            self._class_names = list(feature.names)
        rows = [Row(row, f"{self.place}, {split} row {n}") for n, row in enumerate(part)]
        known_names = self._class_names
        if known_names is not None:

            def named(value: Any) -> Any:
                if isinstance(value, list):
                    return [named(item) for item in value]
                numbered = isinstance(value, int) and 0 <= value < len(known_names)
                return known_names[value] if numbered else value

            for row in rows:
                if self.label_column in row:
                    row[self.label_column] = named(row[self.label_column])
        return rows
