"""Documents from files or the Hugging Face hub, tokenized once and packed into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zoo.data.base import Source
from zoo.data.formats.files import natural_sorted
from zoo.data.language.text import SPLITS, TextDataModule, packed, train_tokenizer
from zoo.errors import ZooError

if TYPE_CHECKING:
    from datasets import Dataset

#: Names that data sets give the splits.
NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
#: Reader of ``datasets`` for files of an ending.
READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".zst": "json",
    ".gz": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".py": "text",
}
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
        source: a folder, or ``hf://owner/name`` with ``/configuration`` behind it if there are
            several. A folder holds files (or folders of files) named ``train``, ``val`` and
            ``test``, as the Pile has them (``train/00.jsonl.zst``, ``val.jsonl.zst``), or files of
            any name, whose documents are then shared out 90 : 5 : 5 in order. JSON lines and
            Parquet hold a document a row, text files one each.
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
        return self._vocab_size if self._tokenizer_source is None else len(self._load_tokenizer())

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
        return PackedDocuments(rows, self.separate)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is not None:
            return self.tokenizer
        if self._tokenizer_source is None:
            rows = self._read()["train"]
            texts = rows.select(range(min(len(rows), TOKENIZER_DOCUMENTS)))[self.column]
            self.tokenizer = train_tokenizer(list(texts), self._vocab_size)
            return self.tokenizer
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_source)
        except (OSError, ValueError) as error:
            raise ZooError(
                f"data.init_args.tokenizer '{self._tokenizer_source}' cannot be loaded: {error}"
            ) from error
        return self.tokenizer

    def _read(self) -> dict[str, Dataset]:
        """The documents of each split."""
        if self._documents is None:
            found = _from_hub(self.place) if "://" in self.place else _from_folder(self.place)
            for split, rows in found.items():
                if self.column not in rows.column_names:
                    raise ZooError(
                        f"data.init_args.column: {self.place} has the columns "
                        f"{', '.join(rows.column_names)} in {split}, expected '{self.column}'"
                    )
            self._documents = found
        return self._documents


def _from_folder(place: str) -> dict[str, Dataset]:
    folder = Path(place)
    files = natural_sorted(path for path in folder.rglob("*") if path.suffix in READERS)
    kinds = {READERS[path.suffix] for path in files}
    if len(kinds) != 1:
        raise ZooError(
            f"data.init_args.source: {folder} holds "
            + (f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else "no documents")
            + f", expected a folder of files of one kind: {' '.join(READERS)}"
        )
    named = {
        split: [str(path) for path in files if _split_of(path.relative_to(folder)) == split]
        for split in SPLITS
    }
    return _load(kinds.pop(), named if all(named.values()) else {"train": list(map(str, files))})


def _split_of(path: Path) -> str | None:
    first = path.parts[0].partition(".")[0].lower()
    return next((split for split, names in NAMES.items() if first in names), None)


def _load(kind: str, files: Mapping[str, list[str]]) -> dict[str, Dataset]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
    try:
        found = load_dataset(kind, data_files=dict(files), **options)
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ZooError(f"data.init_args.source: the files cannot be read: {reason}") from error
    return _shared_out(dict(found))


def _from_hub(place: str) -> dict[str, Dataset]:
    from datasets import load_dataset

    owner, name, configuration = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
    try:
        found = load_dataset(f"{owner}/{name}", configuration or None)
    except Exception as error:  # the library has no common one
        reason = str(error).partition("\n")[0]
        raise ZooError(f"data.init_args.source: {place} cannot be loaded: {reason}") from error
    return _shared_out(dict(found))


def _shared_out(found: dict[str, Dataset]) -> dict[str, Dataset]:
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
    if any(start == end for start, end in borders.values()):
        raise ZooError(
            f"data.init_args.source holds {len(rows)} documents, too few to share out: expected 20 "
            "or more, or files named train, val and test"
        )
    return {split: rows.select(range(*borders[split])) for split in SPLITS}


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
