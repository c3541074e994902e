"""Pictures pixel by pixel: scikit-learn's digits, MNIST, CIFAR-10."""

from __future__ import annotations

import gzip
import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.data.base import Source, shares
from zoo.data.formats.files import reading
from zoo.data.formats.maps import SmallSample
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.ssm.sequences import SequenceDataModule, SequenceFolder, StoredSequence
from zoo.data.vision.images import Digits
from zoo.errors import ZooError


def pixels_of(picture: np.ndarray, order: np.ndarray | None = None) -> Tensor:
    """Picture uint8 [H, W] or [H, W, C] -> [H * W, C], line by line or in an order, -1..1."""
    flat = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1)
    flat = flat.reshape(picture.shape[0] * picture.shape[1], -1)
    return flat if order is None else flat[torch.from_numpy(order)]


def _permutation(size: int) -> np.ndarray:
    """The order in which a permuted picture is read: any, but always the same."""
    return np.random.RandomState(0).permutation(size)


def _resized(path: Path, side: int, mode: str) -> np.ndarray:
    picture = read_picture(path).convert(mode)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))


class SequentialDigits(SequenceDataModule):
    """Handwritten digits that scikit-learn ships, pixel by pixel: 64 steps, ten classes.

    Args:
        permute: read the pixels in an order of no meaning.
        kwargs: see :class:`DataModule`.
    """

    class_names = tuple("0123456789")
    d_input = 1
    suffixes = PICTURE_SUFFIXES

    def __init__(self, permute: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = _permutation(64) if permute else None

    def load(self, split: str) -> Source:
        """1,257 digits for training, 180 for validation, 360 for the test, always the same."""
        pictures = Digits(image_size=8).load(split)
        return [
            StoredSequence(
                partial(pixels_of, np.asarray(pictures[i][0].convert("L")), self.order),
                pictures[i][1],
            )
            for i in range(len(pictures))
        ]

    def read_file(self, path: Path) -> Tensor:
        """A picture at 8 x 8 pixels."""
        return pixels_of(_resized(path, 8, "L"), self.order)


class SequentialMNIST(SequenceFolder):
    """MNIST pixel by pixel: 784 steps, ten classes.

    Layout: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, packed (``.gz``) or not. A tenth of the training pictures is kept
    for validation, always the same.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        permute: read the pixels in an order of no meaning (psMNIST).
    """

    layout = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, or .gz"
    class_names = tuple("0123456789")
    d_input = 1
    suffixes = PICTURE_SUFFIXES
    SIDE: ClassVar = 28

    def __init__(
        self, root: str, sample: SmallSample | None = None, permute: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(root, sample, **kwargs)
        self.order = _permutation(self.SIDE**2) if permute else None

    def sequences(self, split: str) -> Source:
        """The digits of a split."""
        part = "t10k" if split == "test" else "train"
        images = self._read(f"{part}-images-idx3-ubyte", 3)
        labels = self._read(f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ZooError(
                f"{self.root}: {len(images)} pictures but {len(labels)} labels of {part}, expected "
                "as many"
            )
        chosen = range(len(images)) if split == "test" else shares(len(images), test=0)[split]
        return [
            StoredSequence(partial(pixels_of, images[i], self.order), int(labels[i]))
            for i in chosen
        ]

    def _read(self, name: str, dims: int) -> np.ndarray:
        path = self.existing(name, f"{name}.gz")
        with reading(path, "a file of MNIST"):
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
        size = 4 * (dims + 1)
        head = np.frombuffer(content[:size].ljust(size, b"\0"), ">i4")
        sides = [] if dims == 1 else [self.SIDE, self.SIDE]
        values = np.frombuffer(content[size:], np.uint8)
        right = head[0] == 2048 + dims and list(head[2:]) == sides
        if not right or len(values) != np.prod(head[1:], dtype=np.int64):
            raise ZooError(f"{path} is not a whole file of MNIST, expected {self.layout}")
        return values.reshape(head[1:])

    def read_file(self, path: Path) -> Tensor:
        """A picture at 28 x 28 pixels, white on black."""
        return pixels_of(_resized(path, self.SIDE, "L"), self.order)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write scikit-learn's digits, enlarged."""
        pictures = Digits(image_size=8).load("train")
        counts = {"train": sample.train + sample.val, "t10k": sample.test}
        place = 0
        for part, count in counts.items():
            chosen = [pictures[(place + i) % len(pictures)] for i in range(count)]
            place += count
            size = (self.SIDE, self.SIDE)
            images = [np.asarray(p.convert("L").resize(size), np.uint8) for p, _ in chosen]
            head = np.array([2051, count, *size], ">i4").tobytes()
            (folder / f"{part}-images-idx3-ubyte").write_bytes(head + np.stack(images).tobytes())
            labels = np.array([label for _, label in chosen], np.uint8)
            head = np.array([2049, count], ">i4").tobytes()
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


class SequentialCIFAR(SequenceFolder):
    """CIFAR-10 pixel by pixel: 1,024 steps, ten classes.

    Layout: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``
    (``cifar-10-batches-bin``), or the same without ``.bin`` (``cifar-10-batches-py``). A tenth of
    the training pictures is kept for validation, always the same.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`.
        grey: without colours, as Long Range Arena has it; otherwise three features a step.
    """

    layout = "data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the same without .bin"
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    suffixes = PICTURE_SUFFIXES
    SIDE: ClassVar = 32

    def __init__(
        self, root: str, sample: SmallSample | None = None, grey: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(root, sample, **kwargs)
        self.grey = grey
        self.d_input = 1 if grey else 3

    def sequences(self, split: str) -> Source:
        """The pictures of a split."""
        names = ["test_batch"]
        if split != "test":
            names = [f"data_batch_{i}" for i in range(1, 6)]
        rows = np.concatenate([self._batch(self.existing(f"{n}.bin", n)) for n in names])
        chosen = range(len(rows)) if split == "test" else shares(len(rows), test=0)[split]
        return [StoredSequence(partial(self._pixels, rows[i, 1:]), int(rows[i, 0])) for i in chosen]

    def _batch(self, path: Path) -> np.ndarray:
        """Rows [N, 1 + 3072] of a file: class and pixels."""
        with reading(path, "a batch of CIFAR-10"):
            if path.suffix == ".bin":
                return np.fromfile(path, np.uint8).reshape(-1, 3073)
            with path.open("rb") as file:
                content = _Arrays(file, encoding="bytes").load()
            labels = np.array(content[b"labels"], np.uint8)[:, None]
            return np.concatenate([labels, content[b"data"].reshape(-1, 3072)], 1)

    def _pixels(self, row: np.ndarray) -> Tensor:
        picture = row.reshape(3, self.SIDE, self.SIDE).transpose(1, 2, 0)
        if self.grey:
            picture = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))
        return pixels_of(picture)

    def read_file(self, path: Path) -> Tensor:
        """A picture at 32 x 32 pixels."""
        return pixels_of(_resized(path, self.SIDE, "L" if self.grey else "RGB"))

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write scikit-learn's digits, enlarged, in a colour each."""
        pictures, draws = Digits(image_size=8).load("train"), np.random.default_rng(sample.seed)
        count = -(-(sample.train + sample.val) // 5)
        counts = {**{f"data_batch_{i}": count for i in range(1, 6)}, "test_batch": sample.test}
        place = 0
        for name, number in counts.items():
            rows = []
            for _ in range(number):
                picture, label = pictures[place % len(pictures)]
                large = np.asarray(picture.resize((self.SIDE, self.SIDE)), np.float32)
                coloured = large * draws.uniform(0.6, 1, 3)
                row = coloured.astype(np.uint8).transpose(2, 0, 1).reshape(-1)
                rows.append(np.append(np.uint8(label), row))
                place += 1
            np.stack(rows).tofile(folder / f"{name}.bin")


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays and plain values; a file that would run anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What NumPy's own files need."""
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
