"""Long Range Arena (Tay et al. 2021) in its published layout: ListOps, text, retrieval, Pathfinder.

Its pictures are CIFAR-10's, see :class:`zoo.data.SequentialCIFAR`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Source, at_least, shares
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import SmallSample, write_image
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.formats.text_lines import TextLines
from zoo.data.ssm.sequences import SequenceFolder, StoredSequence
from zoo.data.synthetic.list_ops import END, OPERATORS, list_ops
from zoo.data.synthetic.long_texts import papers, review
from zoo.data.synthetic.pathfinder import draw_pathfinder
from zoo.errors import ZooError

_TEXTS = frozenset([".txt", ".tsv"])
#: Tokens of ListOps; 0 is padding.
_TOKENS = {token: i for i, token in enumerate((*OPERATORS, END, *"0123456789"), start=1)}
#: 256 bytes, padding, and the end of a text.
_BYTES, _END = 258, 257


@dataclass
class SmallListOps(SmallSample):
    """How many expressions to make, and which.

    Args:
        train, val, test: expressions of each split; the data set has 96,000, 2,000 and 2,000.
        size: has no meaning here.
        seed: of the maker.
        min_length, max_length, max_depth, max_args: see
            :func:`zoo.data.synthetic.list_ops.list_ops`.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10


class _Rows:
    """Rows of a text file as samples."""

    def __init__(self, lines: TextLines, parse: Any) -> None:
        self.lines, self.parse = lines, parse

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> StoredSequence:
        return self.parse(self.lines[index], f"{self.lines.path}, line {index + 1}")


class ListOps(SequenceFolder):
    """Nested lists of digits with an operation each; which of ten digits do they come to?

    Layout: ``basic_train.tsv``, ``basic_val.tsv``, ``basic_test.tsv`` with the columns ``Source``
    and ``Target``. Parentheses are left out.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        max_length: an expression is cut behind so many tokens.
    """

    layout = "basic_train.tsv, basic_val.tsv, basic_test.tsv with the columns Source and Target"
    class_names = tuple("0123456789")
    vocab_size = len(_TOKENS) + 1
    suffixes = _TEXTS

    def __init__(
        self,
        root: str,
        sample: SmallListOps | None = None,
        max_length: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, sample, **kwargs)
        at_least(1, max_length=max_length)
        self.max_length = max_length

    def sequences(self, split: str) -> Source:
        """The expressions of a file, which are read as they are asked for."""
        lines = TextLines(self.existing(f"basic_{split}.tsv"), header=("Source", "Target"))
        return _Rows(lines, self._row)

    def _row(self, line: str, place: str) -> StoredSequence:
        source, _, target = line.rpartition("\t")
        if not source or target not in self.class_names:
            raise ZooError(f"{place}: {line[-40:]!r}, expected an expression, a tab and a digit")
        return StoredSequence(partial(self._encode, source, place), int(target))

    def _encode(self, source: str, place: str) -> Tensor:
        words = source.replace("(", " ").replace(")", " ").split()
        if unknown := sorted(set(words) - _TOKENS.keys()):
            raise ZooError(f"{place}: {unknown[0]!r} is none of {' '.join(_TOKENS)}")
        return torch.tensor([_TOKENS[word] for word in words[: self.max_length]])

    def read_file(self, path: Path) -> Tensor:
        """The expression in a text file."""
        with reading(path, "a text file with an expression such as [MAX 1 2 ]"):
            text = path.read_text(encoding="utf-8")
        return _not_empty(self._encode(text, str(path)), path)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write expressions, no two of which are drawn alike."""
        assert isinstance(sample, SmallListOps)
        draws = random.Random(sample.seed)
        limits = (sample.min_length, sample.max_length, sample.max_depth, sample.max_args)
        for split in ("train", "val", "test"):
            rows = [list_ops(draws, *limits) for _ in range(getattr(sample, split))]
            lines = ["Source\tTarget", *(f"{text}\t{value}" for text, value in rows)]
            (folder / f"basic_{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _not_empty(tokens: Tensor, path: Path) -> Tensor:
    if len(tokens) == 0:
        raise ZooError(f"{path} is empty, expected text")
    return tokens


def encode_bytes(text: bytes, max_length: int) -> Tensor:
    """Bytes -> tokens 1..256, and 257 behind the last, ``max_length`` at most in all."""
    values = np.frombuffer(text[: max_length - 1], np.uint8).astype(np.int64)
    return torch.from_numpy(np.append(values + 1, _END))


class ByteReviews(SequenceFolder):
    """IMDB's film reviews byte by byte: do they like the film?

    Layout: ``train/{pos,neg}/*.txt``, ``test/{pos,neg}/*.txt`` (``aclImdb``). A tenth of the
    training reviews is kept for validation, always the same.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        max_length: a review is cut behind so many bytes, its end token among them.
    """

    layout = "train/pos/*.txt, train/neg/*.txt, test/pos/*.txt, test/neg/*.txt"
    class_names = ("neg", "pos")
    vocab_size = _BYTES
    suffixes = _TEXTS

    def __init__(
        self, root: str, sample: SmallSample | None = None, max_length: int = 4096, **kwargs: Any
    ) -> None:
        super().__init__(root, sample, **kwargs)
        at_least(2, max_length=max_length)
        self.max_length = max_length

    def sequences(self, split: str) -> Source:
        """The reviews of a split, which are read as they are asked for."""
        found = []
        for label, name in enumerate(self.class_names):
            folder = self.existing(f"{'test' if split == 'test' else 'train'}/{name}")
            files = natural_sorted(folder.glob("*.txt"))
            chosen = range(len(files)) if split == "test" else shares(len(files), test=0)[split]
            found += [StoredSequence(partial(self.read_file, files[i]), label) for i in chosen]
        return found

    def read_file(self, path: Path) -> Tensor:
        """The bytes of a text file."""
        with reading(path, "a text file"):
            text = path.read_bytes()
        return _not_empty(encode_bytes(text, self.max_length), path)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write reviews of ``size`` words."""
        draws = random.Random(sample.seed)
        counts = {"train": sample.train + sample.val, "test": sample.test}
        for split, count in counts.items():
            for number in range(count):
                name = self.class_names[number % 2]
                place = folder / split / name
                place.mkdir(parents=True, exist_ok=True)
                text = review(draws, name == "pos", sample.size)
                rating = 9 if name == "pos" else 2
                (place / f"{number // 2}_{rating}.txt").write_text(text, encoding="utf-8")


class DocumentRetrieval(SequenceFolder):
    """Two papers of the ACL Anthology Network byte by byte: does one cite the other?

    Layout: ``new_aan_pairs.train.tsv``, ``.eval.tsv`` and ``.test.tsv`` without a header; columns
    label, two names, two texts.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        max_length: a text is cut behind so many bytes, its end token among them.
    """

    layout = "new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv, new_aan_pairs.test.tsv"
    class_names = ("unrelated", "cites")
    vocab_size = _BYTES
    paired = True
    suffixes = _TEXTS
    _NAMES: ClassVar = {"train": "train", "val": "eval", "test": "test"}

    def __init__(
        self, root: str, sample: SmallSample | None = None, max_length: int = 4000, **kwargs: Any
    ) -> None:
        super().__init__(root, sample, **kwargs)
        at_least(2, max_length=max_length)
        self.max_length = max_length

    def sequences(self, split: str) -> Source:
        """The pairs of a file, which are read as they are asked for."""
        path = self.existing(f"new_aan_pairs.{self._NAMES[split]}.tsv")
        return _Rows(TextLines(path), self._row)

    def _row(self, line: str, place: str) -> StoredSequence:
        columns = line.split("\t")
        if len(columns) != 5 or columns[0] not in ("0", "1", "0.0", "1.0"):
            raise ZooError(
                f"{place}: {len(columns)} columns, expected 0 or 1, two names, two texts"
            )
        return StoredSequence(partial(self._encode, columns[3:]), int(float(columns[0])))

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        first, second = (encode_bytes(text.encode(), self.max_length) for text in texts)
        return first, second

    def read_file(self, path: Path) -> tuple[Tensor, Tensor]:
        """Two texts with a tab between them in a file."""
        with reading(path, "a text file with two texts and a tab between them"):
            texts = path.read_text(encoding="utf-8").split("\t")
        if len(texts) != 2:
            raise ZooError(f"{path}: {len(texts) - 1} tabs, expected two texts and a tab between")
        return self._encode(texts)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write pairs of papers of ``size`` words."""
        draws = random.Random(sample.seed)
        for split, name in self._NAMES.items():
            lines = []
            for number in range(getattr(sample, split)):
                label = draws.randrange(2)
                first, second = papers(draws, bool(label), sample.size)
                lines.append(
                    f"{label}.0\tP{number:02d}-1000\tP{number:02d}-1001\t{first}\t{second}\n"
                )
            path = folder / f"new_aan_pairs.{name}.tsv"
            path.write_text("".join(lines), encoding="utf-8")


class Pathfinder(SequenceFolder):
    """Pictures of dashed paths, pixel by pixel: are the two dots on one path? Path-X is this with
    pictures of 128 x 128 pixels (``pathfinder128``).

    Layout: ``curv_contour_length_14/imgs/0/sample_0.png`` and ``curv_contour_length_14/metadata/
    0.npy``, text with a line such as ``imgs/0 sample_0.png 0 1 ...`` for each picture, of which the
    fourth word is the class; likewise ``curv_contour_length_9`` and ``curv_baseline``. A tenth is
    kept for validation and another for the test, always the same.

    Args:
        root: such as ``pathfinder32``; ``sample`` makes one, ``sample.size`` being its pictures'.
        sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        level: which of the three folders; hard is what is reported.
    """

    layout = "curv_contour_length_14/imgs/0/sample_0.png and curv_contour_length_14/metadata/0.npy"
    class_names = ("apart", "connected")
    d_input = 1
    suffixes = PICTURE_SUFFIXES
    _LEVELS: ClassVar = {
        "easy": ("curv_baseline", 6),
        "intermediate": ("curv_contour_length_9", 9),
        "hard": ("curv_contour_length_14", 14),
    }

    def __init__(
        self,
        root: str,
        sample: SmallSample | None = None,
        level: Literal["easy", "intermediate", "hard"] = "hard",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, sample, **kwargs)
        self.level = level

    def sequences(self, split: str) -> Source:
        """The pictures of a split, which are read as they are asked for."""
        folder = self._LEVELS[self.level][0]
        tables = natural_sorted(self.existing(f"{folder}/metadata").glob("*.npy"))
        found = []
        for table in tables:
            with reading(table, "text with a line for each picture"):
                lines = table.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                words = line.split()
                if len(words) < 4 or words[3] not in ("0", "1"):
                    raise ZooError(
                        f"{table}, line {number}: {line[:40]!r}, expected folder, file, number and "
                        "0 or 1"
                    )
                path = self.root / folder / words[0] / words[1]
                found.append(StoredSequence(partial(self.read_file, path), int(words[3])))
        return [found[i] for i in shares(len(found))[split]]

    def read_file(self, path: Path) -> Tensor:
        """Pixels of a picture line by line, grey in -1..1, [H * W, 1]."""
        grey = np.asarray(read_picture(path).convert("L"), np.float32)
        return torch.from_numpy(grey / 127.5 - 1).reshape(-1, 1)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw pictures of this level, half of them with both dots on one path."""
        if sample.size < 32:
            raise ZooError(f"data.init_args.sample.size is {sample.size}, expected 32 or more")
        draws = np.random.default_rng(sample.seed)
        name, contour_length = self._LEVELS[self.level]
        lines = []
        for number in range(sample.train + sample.val + sample.test):
            label = int(draws.integers(2))
            picture = draw_pathfinder(draws, sample.size, contour_length, bool(label))
            write_image(folder / name / "imgs" / "0" / f"sample_{number}.png", picture)
            lines.append(f"imgs/0 sample_{number}.png {number} {label} 1.8 {contour_length}\n")
        (folder / name / "metadata").mkdir()
        (folder / name / "metadata" / "0.npy").write_text("".join(lines), encoding="utf-8")
