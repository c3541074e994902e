"""Documents from files or the Hugging Face hub, tokenized once and packed into blocks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zoo.data.base import Source
from zoo.data.formats.files import natural_sorted
from zoo.data.formats.tokenizers import load_tokenizer, vocabulary_size
from zoo.data.language.text import SPLITS, TextDataModule, packed, train_tokenizer
from zoo.errors import ZooError

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("zoo")

#: Names that data sets give the splits.
NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
#: Reader of ``datasets`` for files of an ending.
READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".py": "text",
}
#: Endings that may follow those of packed files; JSON lines are packed without another, too.
PACKED = (".gz", ".zst", ".bz2", ".xz")
#: Characters that a token of a held-out part has at most on average, to be sure of a whole block.
LONG_TOKEN = 8
#: Documents that a new tokenizer is trained on.
TOKENIZER_DOCUMENTS = 20_000


class PackedDocuments(Source):
    """Blocks of a data set with the columns ``ids`` and ``owners``."""

    def __init__(self, rows: Dataset, separate: bool) -> None:
        self.rows, self.separate = rows.with_format("torch"), separate

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.rows[index]
        if not self.separate:
            return row["ids"], torch.ones(len(row["ids"]))
        return row["ids"], *packed(row["owners"])


class Documents(TextDataModule):
    """Texts of any number, read and kept on disk by ``datasets``.

    Documents follow each other, each ended by the tokenizer's end token if it has one, and are cut
    into blocks; what is left of every thousand documents is dropped.

    Args:
        source: a folder, a file, or ``hf://owner/name`` with ``/configuration`` behind it if there
            are several. A folder holds files (or folders of files) named ``train``, ``val`` and
            ``test``, as the Pile has them (``train/00.jsonl.zst``, ``val.jsonl.zst``), or files of
            any name, whose documents are then shared out 90 : 5 : 5 in order; fewer than twenty
            documents are cut at the ends of lines instead. JSON lines and Parquet hold a document a
            row, text files one each.
        column: of the text in a row.
        tokenizer: folder or hub name; None trains a byte-pair tokenizer on the training documents.
        vocab_size: of a tokenizer that is trained; that of another is its own.
        separate: keep documents apart, see :class:`zoo.data.language.text.TextDataModule`.
        length: tokens of a block.
        kwargs: see :class:`zoo.data.DataModule`; ``num_workers`` processes tokenize.
    """

    def __init__(
        self,
        source: str,
        column: str = "text",
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        separate: bool = True,
        length: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(length, **kwargs)
        self.place, self.column, self.separate = source, column, separate
        self._tokenizer_source, self._vocab_size = tokenizer, vocab_size
        self._documents: dict[str, Dataset] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        if self._tokenizer_source is None:
            return self._vocab_size
        return vocabulary_size(self._load_tokenizer(), self._tokenizer_source)

    def load(self, split: str) -> PackedDocuments:
        """Tokenize and pack a split; ``datasets`` remembers the result."""
        tokenizer = self._load_tokenizer()
        documents = self._read()[split]
        rows = documents.map(
            _pack,
            batched=True,
            remove_columns=documents.column_names,
            num_proc=self.num_workers or None,
            desc=f"tokenizing {split}",
            fn_kwargs={"tokenizer": tokenizer, "column": self.column, "length": self.length},
        )
        if len(rows) == 0:
            raise ZooError(
                f"data.init_args.source: the {split} documents fill no block of {self.length} "
                "tokens: lower data.init_args.length, or give more text"
            )
        return PackedDocuments(rows, self.separate)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is not None:
            return self.tokenizer
        if self._tokenizer_source is None:
            rows = self._read()["train"]
            texts = rows.select(range(min(len(rows), TOKENIZER_DOCUMENTS)))[self.column]
            self.tokenizer = train_tokenizer(list(texts), self._vocab_size)
            return self.tokenizer
        self.tokenizer = load_tokenizer(self._tokenizer_source)
        return self.tokenizer

    def _read(self) -> dict[str, Dataset]:
        """The documents of each split."""
        if self._documents is None:
            found = _from_hub(self.place) if "://" in self.place else _from_disk(Path(self.place))
            for split, rows in found.items():
                if self.column not in rows.column_names:
                    raise ZooError(
                        f"data.init_args.column: {self.place} has the columns "
                        f"{', '.join(rows.column_names)} in {split}, expected '{self.column}'"
                    )
            self._documents = self._shared_out(found)
        return self._documents

    def _shared_out(self, found: dict[str, Dataset]) -> dict[str, Dataset]:
        """By our names of the splits; where one is missing, from the training documents."""
        known = {
            split: rows
            for split, names in NAMES.items()
            for name, rows in found.items()
            if name in names
        }
        if set(known) == set(SPLITS):
            return known
        rows = known.get("train") or next(iter(found.values()))
        borders = {split: [round(share * len(rows)) for share in SPLITS[split]] for split in SPLITS}
        if all(start < end for start, end in borders.values()):
            return {split: rows.select(range(*borders[split])) for split in SPLITS}
        return self._cut(list(rows[self.column]))

    def _cut(self, texts: Sequence[str | None]) -> dict[str, Dataset]:
        """Few documents, which the splits share: the first lines, those after them, the last."""
        from datasets import Dataset

        lines = [line for text in texts if text for line in [*text.splitlines(True), ""]]
        total = sum(map(len, lines))
        held_back = max(round(0.05 * total), LONG_TOKEN * self.length)
        if 4 * held_back > total:
            raise ZooError(
                f"data.init_args.source holds {total:,} characters, too few to share out in blocks "
                f"of {self.length} tokens: expected {4 * LONG_TOKEN * self.length:,} or more, or a "
                "smaller data.init_args.length"
            )
        log.warning(
            "%s holds %d documents: the last two twentieths of their lines are for val and test",
            *(self.place, len(texts)),
        )
        parts: dict[str, list[str]] = {split: [""] for split in SPLITS}
        place = 0
        for line in lines:
            rest = total - place
            split = "train" if rest > 2 * held_back else "val" if rest > held_back else "test"
            parts[split][-1] += line
            if not line:
                parts[split].append("")
            place += len(line)
        return {split: Dataset.from_dict({self.column: part}) for split, part in parts.items()}


def _from_disk(place: Path) -> dict[str, Dataset]:
    if place.is_file():  # of any name, as it was named
        return _load(_kind(place) or "text", {"train": [str(place)]})
    files = [path for path in natural_sorted(place.rglob("*")) if _kind(path) and path.is_file()]
    kinds = {_kind(path) for path in files}
    if len(kinds) != 1:
        raise ZooError(
            f"data.init_args.source: {place} holds "
            + (f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else "no documents")  # type: ignore[arg-type]
            + f", expected a file, or a folder of files of one kind: {' '.join(READERS)}"
        )
    named = {
        split: [str(path) for path in files if _split_of(path.relative_to(place)) == split]
        for split in SPLITS
    }
    whole = {"train": [str(path) for path in files]}
    return _load(kinds.pop(), named if all(named.values()) else whole)  # type: ignore[arg-type]


def _kind(path: Path) -> str | None:
    """Reader of ``datasets`` for a file; None: it holds no documents."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        return READERS.get(path.with_suffix("").suffix.lower(), "json")
    return READERS.get(suffix)


def _split_of(path: Path) -> str | None:
    first = path.parts[0].partition(".")[0].lower()
    return next((split for split, names in NAMES.items() if first in names), None)


def _load(kind: str, files: Mapping[str, list[str]]) -> dict[str, Dataset]:
    from datasets import load_dataset

    options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
    try:
        return dict(load_dataset(kind, data_files=dict(files), **options))
    except Exception as error:  # the readers of each kind have their own
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise ZooError(f"data.init_args.source: the files cannot be read: {reason}") from error


def _from_hub(place: str) -> dict[str, Dataset]:
    from datasets import load_dataset

    owner, name, configuration = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
    try:
        return dict(load_dataset(f"{owner}/{name}", configuration or None))
    except Exception as error:  # the library has no common one
        reason = str(error).partition("\n")[0]
        raise ZooError(f"data.init_args.source: {place} cannot be loaded: {reason}") from error


def _pack(
    rows: Mapping[str, list[str]], tokenizer: PreTrainedTokenizerBase, column: str, length: int
) -> dict[str, list[list[int]]]:
    """A batch of documents -> blocks, and the number of the document of each token."""
    texts = tokenizer([text for text in rows[column] if text], add_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens: list[int] = []
    owners: list[int] = []
    for number, ids in enumerate(texts["input_ids"]):
        tokens += [*ids, *end]
        owners += [number] * (len(ids) + len(end))
    starts = range(0, len(tokens) - length + 1, length)
    return {
        "ids": [tokens[start : start + length] for start in starts],
        "owners": [owners[start : start + length] for start in starts],
    }
