"""Labelled pictures: scikit-learn's digits, image folders (ImageNet), Hugging Face data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from timm.data.auto_augment import posterize
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from zoo.arguments import blaming
from zoo.data.base import DataModule, Source, at_least, shares
from zoo.data.formats.pictures import list_pictures, read_picture, to_rgb
from zoo.data.hub import open_dataset, rows_of_split
from zoo.errors import ZooError

log = logging.getLogger("zoo")


@dataclass
class Augmentation:
    """What happens to a training picture; timm's ``create_transform`` does it.

    Args:
        scale: share of the picture's area that the random crop keeps; None keeps the whole picture.
        ratio: width to height of the random crop.
        hflip: probability of a mirror image.
        color_jitter: strength; without effect beside ``auto_augment``, as in timm.
        auto_augment: policy such as ``rand-m9-mstd0.5-inc1``.
        re_prob: probability of random erasing; ``re_mode``: what the erased part holds.
    """

    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"


class ImageDataModule(DataModule):
    """Pictures with a class each; samples are (PIL picture, class), batches ([B, 3, S, S], [B]).

    Args:
        image_size: side S of the square that the model sees, in pixels.
        augmentation: for training; evaluation takes a centre crop.
        interpolation: how pictures are resized, in training and evaluation.
        crop_pct: the shorter side is resized to ``image_size / crop_pct``, then the centre is cut.
        mean, std: per channel, of values in 0..1.
        kwargs: see :class:`DataModule`.
    """

    class_names: Sequence[str]

    def __init__(
        self,
        image_size: int = 224,
        augmentation: Augmentation | None = None,
        interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
        crop_pct: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(1, image_size=image_size)
        self.image_size, self.mean, self.std = image_size, mean, std
        augmentation = augmentation or Augmentation()
        common: dict[str, Any] = {
            "input_size": image_size,
            "interpolation": interpolation,
            "mean": mean,
            "std": std,
        }
        policy = f"auto_augment is {augmentation.auto_augment!r}, expected such as rand-m9-mstd0.5"
        with blaming(f"data.init_args.augmentation: {policy}"):
            self._train = create_transform(
                **common,
                is_training=True,
                # a crop of the whole area is a plain resize
                scale=augmentation.scale or (1.0, 1.0),
                ratio=augmentation.ratio if augmentation.scale else (1.0, 1.0),
                hflip=augmentation.hflip,
                color_jitter=augmentation.color_jitter,
                auto_augment=augmentation.auto_augment,
                re_prob=augmentation.re_prob,
                re_mode=augmentation.re_mode,
            )
        for step in self._train.transforms:
            for operation in getattr(step, "ops", ()):
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize
        self._eval = create_transform(**common, crop_pct=crop_pct)

    def train_transform(self, sample: tuple[Image.Image, int]) -> tuple[torch.Tensor, int]:
        """Augment and normalise one picture."""
        return self._train(sample[0]), sample[1]

    def eval_transform(self, sample: tuple[Image.Image, int]) -> tuple[torch.Tensor, int]:
        """Resize, crop and normalise one picture."""
        return self._eval(sample[0]), sample[1]

    def to_display(self, images: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: [..., 3, H, W] -> uint8 [..., H, W, 3]."""
        shape = (3, 1, 1)
        pixels = images.float().cpu() * torch.tensor(self.std).view(shape)
        pixels = (pixels + torch.tensor(self.mean).view(shape)).clamp(0, 1)
        return (pixels * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


class Digits(ImageDataModule):
    """Handwritten digits that scikit-learn ships: 1,797 real 8x8 grey pictures, 10 classes.

    Always the same 1,257 for training, 180 for validation, 360 for the test.

    Args:
        kwargs: see :class:`ImageDataModule`.
    """

    class_names = tuple("0123456789")

    def load(self, split: str) -> Source:
        """Pictures of a split at their own 8x8 pixels."""
        table = np.loadtxt(_digits_file(), delimiter=",")
        pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        order = np.random.RandomState(0).permutation(len(pixels))
        chosen = {"train": order[:1257], "val": order[1257:1437], "test": order[1437:]}[split]
        return [(Image.fromarray(pixels[i]).convert("RGB"), int(table[i, -1])) for i in chosen]


def _digits_file() -> Path:
    """The digits that scikit-learn brings along; to import it for them would take a second."""
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return file
    raise ZooError("zoo.data.Digits needs the file of scikit-learn: pip install scikit-learn")


class _Files:
    """Picture files with their classes, read when they are asked for."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.files[index]
        return read_picture(path), label


class ImageFolder(ImageDataModule):
    """A folder per class, ImageNet's layout: ``train/<class>/*.JPEG``, ``val/<class>/*.JPEG``.

    Without ``val``, a tenth of the training pictures of each class is kept for validation; without
    ``test`` the validation pictures are the test, as ImageNet is reported. Folders of classes that
    stand in ``root`` itself are shared out 8:1:1. It is the same pictures each time.

    Args:
        root: folder that holds ``train``, and perhaps ``val`` (or ``valid``, ``validation``) and
            ``test``; or the folders of the classes.
        kwargs: see :class:`ImageDataModule`.
    """

    _LAYOUT = (
        "expected a folder with train/<class>/*.JPEG and val/<class>/*.JPEG, or <class>/*.JPEG"
    )
    _NAMES: ClassVar = {
        "train": ("train",),
        "val": ("val", "valid", "validation"),
        "test": ("test",),
    }

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()

    def load(self, split: str) -> Source:
        """List the files of a split; they are opened later, one by one."""
        if not self.root.is_dir():
            raise ZooError(
                f"data.init_args.root: {self.root} is not a folder, {self._LAYOUT}; "
                "set it with --data.init_args.root FOLDER"
            )
        folders = {name: self._split_folder(name) for name in self._NAMES}
        if any(folders.values()) and folders["train"] is None:
            raise ZooError(f"{self.root / 'train'} is missing, {self._LAYOUT}")
        if folders["train"] is not None and split == "test" and folders["test"] is None:
            return self.source("val")
        training = folders["train"] or self.root
        names = self._class_folders(training)
        self.class_names = _readable(names)
        whole = folders["val"] if split == "train" else folders[split]
        if whole is None:
            return self._share(split, training, names)
        folder = folders[split] or training
        if unknown := sorted(set(self._class_folders(folder)) - set(names)):
            raise ZooError(f"{folder / unknown[0]}: a class that {training} lacks")
        return _Files(
            [
                (path, label)
                for label, name in enumerate(names)
                if (folder / name).is_dir()
                for path in list_pictures(folder / name)
            ]
        )

    def _share(self, split: str, folder: Path, names: Sequence[str]) -> Source:
        """The part of a split of each class in a folder that several splits share."""
        alone = folder == self.root
        if not self._sources:  # of the first split that is loaded
            log.warning(
                "%s has no folder %s: a tenth of each class is kept for validation%s",
                *(self.root, *(("train", ", another for the test") if alone else ("val", ""))),
            )
        files = []
        for label, name in enumerate(names):
            found = list_pictures(folder / name)
            parts = _parts(len(found), val=0.1, test=0.1 if alone else 0.0)
            files += [(found[i], label) for i in parts[split]]
        return _Files(files)

    def _split_folder(self, split: str) -> Path | None:
        places = [self.root / name for name in self._NAMES[split]]
        return next((place for place in places if place.is_dir()), None)

    def _class_folders(self, folder: Path) -> list[str]:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        if not names:
            raise ZooError(f"{folder} holds no folders, {self._LAYOUT}")
        return names


def _parts(count: int, val: float, test: float) -> dict[str, list[int]]:
    """:func:`zoo.data.base.shares`; where there are too few, training comes first, then
    validation."""
    try:
        return shares(count, val, test)
    except ZooError:
        indices = list(range(count))
        return {"train": indices[:1], "val": indices[1:2], "test": indices[2:]}


class HuggingFaceImages(ImageDataModule):
    """Any image data set of the Hugging Face hub, or one on disk, through ``datasets``.

    Args:
        path: name on the hub, a folder written by ``save_to_disk``, or a folder that
            ``load_dataset`` understands.
        name: configuration of the data set, if it has several.
        train_split, val_split, test_split: names of its splits. Without a validation split a tenth
            of the training samples is held back; without a test split the validation split is the
            test.
        image_column, label_column: names of its columns.
        kwargs: see :class:`ImageDataModule`.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = "test",
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.name = path, name
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.columns = image_column, label_column
        self._dataset: Any = None

    def load(self, split: str) -> Source:
        """Samples of a split; pictures are decoded when they are asked for."""
        if split == "test" and self.splits["test"] is None:
            return self.source("val")
        if self._dataset is None:
            self._dataset = open_dataset(self.path, self.name)
        if self.splits["val"] is None and split != "test":
            held_back = self._rows("train").train_test_split(test_size=0.1, seed=0)
            rows = held_back["train" if split == "train" else "test"]
        else:
            rows = self._rows(split)
        return _Rows(rows, *self.columns, self._labels(rows))

    def _rows(self, split: str) -> Any:
        columns = dict(zip(("image_column", "label_column"), self.columns, strict=True))
        wanted = self.splits[split]
        return rows_of_split(self._dataset, self.path, f"{split}_split", wanted, columns)

    def _labels(self, rows: Any) -> dict[Any, int]:
        """Stored label -> class index; sets the class names."""
        feature = rows.features[self.columns[1]]
        if hasattr(feature, "names"):
            self.class_names = feature.names
            return {index: index for index in range(len(feature.names))}
        values = sorted(self._rows("train").unique(self.columns[1]))
        self.class_names = [str(value) for value in values]
        return {value: index for index, value in enumerate(values)}


class _Rows:
    """Rows of a ``datasets`` table as (picture, class)."""

    def __init__(self, rows: Any, image_column: str, label_column: str, labels: dict) -> None:
        self.rows, self.image, self.label, self.labels = rows, image_column, label_column, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self.rows[index]
        label = row[self.label]
        if label not in self.labels:
            raise ZooError(f"row {index}: label {label!r} does not occur in the training split")
        return to_rgb(row[self.image]), self.labels[label]


def _posterize(picture: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """timm's policies go down to 0 bits, a black picture, which Pillow 13 no longer takes."""
    if bits_to_keep < 1:
        return Image.new(picture.mode, picture.size)
    return posterize(picture, bits_to_keep, **kwargs)


def _readable(names: list[str]) -> list[str]:
    """ImageNet's folder names (n01440764) as words; other names as they are."""
    info = ImageNetInfo("imagenet-1k")
    known = set(info.label_names())
    if not known.issuperset(names):
        return names
    return [info.label_name_to_description(name, detailed=False).split(",")[0] for name in names]
