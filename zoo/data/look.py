"""What a data module's samples are, as a model will see them, and what is odd about them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import DataModule, SampleKey, SeededDataset
from zoo.plots.panels import Panels, overlay

#: A label of pixels that counts nowhere.
_IGNORED = 255
#: Numbers of a part that are counted one by one, at most.
_MOST_NUMBERS = 256
#: Fewer samples than this say little of a model.
_FEW = 20


@dataclass
class Part:
    """One tensor or number of the samples.

    Attributes:
        shapes: that were seen.
        dtype: of all.
        least, most: values.
        counts: how often each number came, of whole numbers; None where there are too many.
    """

    shapes: set[tuple[int, ...]] = field(default_factory=set)
    dtype: str = ""
    least: float = float("inf")
    most: float = float("-inf")
    counts: Counter[int] | None = field(default_factory=Counter)

    def add(self, value: Tensor) -> None:
        """Take one sample's."""
        self.shapes.add(tuple(value.shape))
        self.dtype = str(value.dtype).removeprefix("torch.")
        if not value.numel():
            return
        finite = value[value.isfinite()] if value.is_floating_point() else value
        if finite.numel():
            self.least = min(self.least, float(finite.min()))
            self.most = max(self.most, float(finite.max()))
        if value.is_floating_point() or value.is_complex():
            self.counts = None
        elif self.counts is not None:
            numbers, times = value.reshape(-1).unique(return_counts=True)
            self.counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
            if len(self.counts) > _MOST_NUMBERS:
                self.counts = None

    @property
    def shape(self) -> str:
        """Such as ``3 x 64 x 40..64``."""
        if len({len(shape) for shape in self.shapes}) != 1:
            return "of several shapes"
        sizes = [(min(axis), max(axis)) for axis in zip(*self.shapes, strict=True)]
        return " x ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in sizes) or "one number"


@dataclass
class Split:
    """What was seen of one split.

    Attributes:
        size: samples in it; ``seen``: how many were looked at, evenly spread.
        parts: by name (``image``, ``target``, ...).
        odd: sentences about what a user would want to know.
        digests: of the looked at, to find them elsewhere.
    """

    size: int
    seen: int = 0
    parts: dict[str, Part] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    digests: dict[bytes, int] = field(default_factory=dict)


def parts_of(sample: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors and numbers of a sample; a pair's are called input and target."""
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            yield from parts_of(value, f"{name}.{key}" if name else str(key))
    elif isinstance(sample, (tuple, list)):
        pair = len(sample) == 2 and not name
        for number, value in enumerate(sample):
            own = ("input", "target")[number] if pair else f"{name}[{number}]"
            yield from parts_of(value, own)
    elif isinstance(sample, (Tensor, np.ndarray, np.generic, bool, int, float)):
        yield name or "input", torch.as_tensor(sample)


def look(data: DataModule, split: str, most: int) -> Split:
    """Look at up to ``most`` samples of a split, as they are evaluated."""
    source = data.source(split)
    dataset = SeededDataset(source, data.eval_transform, data.seed)
    found = Split(len(source))
    flat: list[int] = []
    broken: list[int] = []
    for number in _spread(found.size, most):
        found.seen += 1
        digest = hashlib.sha256()
        for name, value in parts_of(dataset[SampleKey(0, number)]):
            found.parts.setdefault(name, Part()).add(value)
            if value.dim() and value.numel() > 1:
                digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
                if value.is_floating_point() and not value.isfinite().all():
                    broken.append(number)
                elif value.dim() > 1 and value.is_floating_point() and _is_flat(value):
                    flat.append(number)
        found.digests.setdefault(digest.digest(), number)
    for numbers, what in ((broken, "holds NaN or infinity"), (flat, "is one value throughout")):
        if numbers:
            found.odd.append(
                f"{split}: {len(numbers)} of {found.seen} samples looked at have a part that {what}"
                f", such as sample {numbers[0]}"
            )
    if len(found.digests) < found.seen:
        found.odd.append(
            f"{split}: {found.seen - len(found.digests)} of {found.seen} samples looked at are the "
            "same as another one"
        )
    if split != "train" and found.size < _FEW:
        found.odd.append(f"{split}: {found.size} samples are few to judge by")
    found.odd += _unseen_classes(data, split, found)
    return found


def shared(splits: Mapping[str, Split]) -> list[str]:
    """Sentences about samples that stand in two splits."""
    odd = []
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = splits[first].digests.keys() & splits[second].digests.keys()
            if both and len(both) == len(splits[first].digests) == len(splits[second].digests):
                odd.append(f"{first} and {second} are the same samples, as far as looked at")
            elif both:
                digest = next(iter(both))
                odd.append(
                    f"{len(both)} samples looked at stand in both {first} and {second}, such as "
                    f"{splits[first].digests[digest]} and {splits[second].digests[digest]}"
                )
    return odd


def labels_of(data: DataModule, split: Split) -> tuple[str, Counter[int]] | None:
    """Name and counts of the part that holds the classes, if the data have any."""
    names: Sequence[str] | None = getattr(data, "class_names", None)
    if names is None:
        return None
    for name, part in reversed(split.parts.items()):
        if part.counts and max(n for n in part.counts if n != _IGNORED or len(names) > n) < len(
            names
        ):
            return name, Counter({n: c for n, c in part.counts.items() if 0 <= n < len(names)})
    return None


def _unseen_classes(data: DataModule, split: str, found: Split) -> list[str]:
    labels = labels_of(data, found)
    if labels is None or found.seen < found.size:
        return []
    unseen = [name for number, name in enumerate(data.class_names) if number not in labels[1]]
    return [f"{split}: no sample of {', '.join(unseen[:8])}"] if unseen else []


def _is_flat(value: Tensor) -> bool:
    """Whether every channel of a picture is one value throughout."""
    return bool((value.amax((-2, -1)) == value.amin((-2, -1))).all())


def _spread(size: int, most: int) -> list[int]:
    """Evenly spaced numbers below ``size``."""
    seen = min(size, most)
    return [i * size // seen for i in range(seen)]


def pictures(data: DataModule, count: int) -> list[Panels]:
    """Training samples as they reach the model: parts that are pictures, maps or spectrograms.

    Nothing where no part can be seen.
    """
    dataset = SeededDataset(data.source("train"), data.train_transform, data.seed)
    rows: list[Panels] = []
    for number in _spread(len(dataset), count):
        row: dict[str, np.ndarray] = {}
        for name, value in parts_of(dataset[SampleKey(0, number)]):
            shown = _as_picture(data, value)
            if shown is not None:
                row[name] = shown
        if row and (not rows or row.keys() == rows[0].keys()):
            rows.append(row)
    return rows


def _as_picture(data: DataModule, value: Tensor) -> np.ndarray | None:
    if value.dim() == 3 and value.shape[0] in (1, 3) and value.is_floating_point():
        if hasattr(data, "to_display"):
            return np.asarray(data.to_display(value))
        low, high = value.min(), value.max()
        grey = ((value - low) / (high - low).clamp_min(1e-12) * 255).to(torch.uint8)
        return grey.expand(3, -1, -1).movedim(0, -1).numpy()
    if value.dim() != 2 or min(value.shape) == 1:
        return None
    if value.is_floating_point():
        return value.numpy()
    labels = value.numpy().astype(np.int64)
    paper = np.full((*labels.shape, 3), 230, np.uint8)
    return overlay(paper, np.where(labels == _IGNORED, 0, labels), 1.0)
