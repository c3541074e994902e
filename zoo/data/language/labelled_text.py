"""Texts, or pairs of texts, with a class or a number each: tables, hub data sets, GLUE."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.text_rows import Row, read_rows
from zoo.data.language._text_tables import TextTables
from zoo.data.synthetic.sentences import sentence
from zoo.errors import ZooError, suggest


class LabelledRow(NamedTuple):
    """A stored sample.

    Attributes:
        texts: one or two.
        label: a class, or a number.
    """

    texts: tuple[str, ...]
    label: int | float


class LabelledText(TextTables):
    """Texts with a class each, or with a number where ``class_names`` is ``[score]``.

    A batch: ``input_ids``, ``attention_mask`` and, of tokenizers that have them,
    ``token_type_ids``, int64 ``[B, L]``, padded to the longest on the tokenizer's side; ``labels``
    ``[B]``, int64, or float32 of numbers. Texts that are too long are cut, as the field does.

    Args:
        source: a folder with ``train``, ``val`` (or ``dev``, ``valid``, ``validation``) and
            ``test`` as ``.jsonl``, ``.csv`` or ``.tsv``, or ``hf://owner/name`` with
            ``/configuration`` behind it if there are several. Without ``test`` the validation
            samples are the test, as they are where a test has no labels.
        text_columns: one, or two for pairs.
        label_column: of the class.
        class_names: in order; None: those of the training samples, sorted; ``[score]``: labels are
            numbers.
        tokenizer: folder or hub name; None trains word pieces on the training texts.
        vocab_size: of a tokenizer that is trained.
        length: most tokens of a sample, special ones included.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        source: str,
        text_columns: Sequence[str] = ("text",),
        label_column: str = "label",
        class_names: Sequence[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        length: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            source,
            label_column,
            class_names=class_names,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            length=length,
            **kwargs,
        )
        if len(text_columns) not in (1, 2):
            raise ZooError(
                f"data.init_args.text_columns has {len(text_columns)} names, expected one or two"
            )
        self.text_columns = tuple(text_columns)

    # labels and tokens

    def _find_classes(self) -> list[str]:
        return sorted({str(self._cell(row)) for row in self.rows("train")})

    def _train_texts(self) -> Iterator[str]:
        return (text for row in self.source("train") for text in row.texts)

    @property
    def numeric(self) -> bool:
        """Whether labels are numbers."""
        return self.class_names == ["score"]

    # samples

    def load(self, split: str) -> list[LabelledRow]:
        """The samples of a split."""
        return [
            LabelledRow(tuple(row.text(column) for column in self.text_columns), self._label(row))
            for row in self.rows(split)
        ]

    def _cell(self, row: Row) -> Any:
        if row.get(self.label_column) is None:
            raise ZooError(
                f"{row.place}: no column {self.label_column!r}, the row has {', '.join(row)}"
            )
        return row[self.label_column]

    def _label(self, row: Row) -> int | float:
        value = self._cell(row)
        if self.numeric:
            try:
                return float(value)
            except ValueError:
                raise ZooError(
                    f"{row.place}: {self.label_column} is {value!r}, expected a number"
                ) from None
        if str(value) not in self.class_names:
            raise ZooError(
                f"{row.place}: the label {str(value)!r} is unknown; "
                + suggest(str(value), self.class_names)
            )
        return self.class_names.index(str(value))

    def train_transform(self, sample: LabelledRow) -> LabelledRow:
        """As it is: texts become tokens a batch at a time."""
        return sample

    eval_transform = train_transform

    def collate(self, samples: Sequence[LabelledRow]) -> dict[str, Tensor]:
        """Tokens of a batch; too long texts are cut."""
        batch = self.encode([sample.texts for sample in samples])
        kind = torch.float32 if self.numeric else torch.int64
        return {**batch, "labels": torch.tensor([sample.label for sample in samples], dtype=kind)}

    def encode(self, texts: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
        """Texts, or pairs, as ``input_ids`` and masks ``[B, L]``; cut at ``length`` tokens."""
        encoded = self.tokenizer(
            *(list(column) for column in zip(*texts, strict=True)),
            truncation=True,
            max_length=self.length,
            padding=True,
            return_tensors="pt",
        )
        return dict(encoded)

    def tokens_of(self, texts: tuple[str, ...]) -> int:
        """How many tokens a sample has, special ones included, before it is cut."""
        return len(self.tokenizer(*texts)["input_ids"])


class _GlueTask(NamedTuple):
    """Layout of a task of GLUE: columns of texts and label, classes in the order of the numbers
    that the field gives them, files of the two parts that are measured."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    val: str = "dev"
    test: str = "dev"
    #: Of a table without a header.
    columns: tuple[str, ...] | None = None
    #: Whether the published files have rows that miss cells.
    skip_broken: bool = False


_ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "cola": _GlueTask(
        ("sentence",), "label", ("0", "1"), columns=("source", "label", "mark", "sentence")
    ),
    "sst-2": _GlueTask(("sentence",), "label", ("0", "1")),
    "mrpc": _GlueTask(("#1 String", "#2 String"), "Quality", ("0", "1")),
    "sts-b": _GlueTask(("sentence1", "sentence2"), "score", ("score",)),
    "qqp": _GlueTask(("question1", "question2"), "is_duplicate", ("0", "1"), skip_broken=True),
    "mnli": _GlueTask(
        ("sentence1", "sentence2"),
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        val="dev_matched",
        test="dev_mismatched",
    ),
    "qnli": _GlueTask(("question", "sentence"), "label", _ENTAILED),
    "rte": _GlueTask(("sentence1", "sentence2"), "label", _ENTAILED),
    "wnli": _GlueTask(("sentence1", "sentence2"), "label", ("0", "1")),
}


@dataclass
class SmallSentences(SmallSample):
    """How many sentences to make in CoLA's layout.

    Args:
        train, val, test: of each split; validation and test are one file.
        size: has no meaning here.
        seed: of the maker.
    """


class Glue(LabelledText):
    """A task of GLUE (arXiv 1804.07461) in the layout of its ``.tsv`` files.

    The published tests have no labels: validation and test are ``dev.tsv``, of MNLI
    ``dev_matched.tsv`` and ``dev_mismatched.tsv``.

    Args:
        root: the task's folder, with ``train.tsv`` and ``dev.tsv``.
        task: its name; upper case is the same.
        sample: of ``cola``: make a small data set of the same layout in ``root`` if there is none;
            null: never.
        kwargs: see :class:`LabelledText`.
    """

    def __init__(
        self, root: str, task: str, sample: SmallSentences | None = None, **kwargs: Any
    ) -> None:
        if task.lower() not in GLUE:
            raise ZooError(f"data.init_args.task: {suggest(task.lower(), GLUE)}")
        self.layout = GLUE[task.lower()]
        if sample is not None and task.lower() != "cola":
            raise ZooError(f"data.init_args.sample makes CoLA alone, not {task}: set it to null")
        super().__init__(
            root,
            text_columns=self.layout.texts,
            label_column=self.layout.label,
            class_names=self.layout.classes,
            **kwargs,
        )
        self.sample = sample

    def read(self, split: str) -> list[Row]:
        """The rows of a split; makes the small data set first where that is wanted."""
        root = Path(self.place).expanduser()
        if self.sample is not None:
            make_once(self, root, self.sample)
        name = {"train": "train", "val": self.layout.val, "test": self.layout.test}[split]
        return read_rows(root / f"{name}.tsv", self.layout.columns, self.layout.skip_broken)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write sentences of which half are acceptable."""
        draw = random.Random(sample.seed)
        for name, count in (("train", sample.train), ("dev", sample.val)):
            lines = []
            for number in range(count):
                good = number % 2 == 0
                marks = f"made\t{int(good)}\t{'' if good else '*'}"
                lines.append(f"{marks}\t{sentence(draw, good)}")
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
