"""Pictures with masks of one's own: a folder of each, any usual names and ways to write classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.data.base import shares
from zoo.data.formats.labels import (
    LOSSY_SUFFIXES,
    NEARLY_BLACK,
    NEARLY_WHITE,
    read_label_colours,
    read_label_pixels,
    read_mask,
)
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.formats.pictures import paired
from zoo.data.synthetic.portraits import draw_portrait
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE

log = logging.getLogger("zoo")

PICTURES = ("images", "image", "imgs", "img", "pictures", "JPEGImages")
MASKS = ("masks", "mask", "labels", "label", "annotations", "gt", "SegmentationClass")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
#: So many masks are read to find the classes.
_LOOKED_AT = 500


class PictureMasks(MapDataModule):
    """A picture and a mask of each name; batches of ``image`` [B, 3, S, S], ``mask`` [B, S, S].

    What the masks say is found in them: yes and no in any of the ways of
    :func:`zoo.data.formats.labels.read_mask`; or numbers of classes, also of a palette, with 255
    for what does not count. Classes are called by ``class_names``, else by the lines of
    ``classes.txt`` in ``root``, else by their numbers. Colours need ``colours``.

    Without ``train``, a tenth of the pictures is kept for validation and for the test each; without
    ``test`` the validation pictures are the test. It is the same pictures each time.

    Args:
        root: folder with ``images`` and ``masks`` (or ``JPEGImages`` and ``SegmentationClass``,
            ``img`` and ``labels``, ...), or with ``train``, ``val`` and ``test`` that hold them;
            ``sample`` makes silhouettes of heads and shirts.
        class_names: in the order of their numbers.
        colours: class -> its colour [r, g, b] in masks of colours; others do not count.
        image_size: side S.
        augment: mirror, cut and colour training pictures.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "images/*.jpg and masks/*.png, or these in train, val and test"
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def __init__(
        self,
        root: str,
        class_names: Sequence[str] | None = None,
        colours: Mapping[str, tuple[int, int, int]] | None = None,
        image_size: int = 224,
        augment: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_size, self.augment = image_size, augment
        self._given_names, self.colours = class_names, dict(colours or {})
        self._numbers: np.ndarray | None = None  # of the classes; None: colours, or yes and no
        self._names: tuple[str, ...] | None = None
        self._resize = v2.Resize([image_size, image_size], antialias=True)
        self._vary = v2.Compose(
            [
                v2.RandomResizedCrop(
                    [image_size, image_size], scale=(0.4, 1.0), ratio=(0.8, 1.25), antialias=True
                ),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
            ]
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers."""
        if self._names is None:
            if not self.root.is_dir():
                return tuple(self._given_names or self.colours or ("background", "foreground"))
            self._find_classes()
        assert self._names is not None
        return self._names

    def _find_classes(self) -> None:
        masks = [mask for _, mask in self._pairs("train")]
        masks = masks[:: max(1, len(masks) // _LOOKED_AT)]
        if self.colours:
            found: Sequence[str] = list(self.colours)
        elif _are_yes_or_no(masks):
            found = ("background", "foreground")
        else:
            numbers = sorted(set().union(*map(_numbers_of, masks)) - {IGNORE})
            self._numbers = np.array(numbers)
            listed = self.root / "classes.txt"
            lines = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else []
            lines = [line.strip() for line in lines if line.strip()]
            found = [lines[n] if n < len(lines) else str(n) for n in numbers]
        if self._given_names is not None:
            if len(self._given_names) != len(found):
                raise ZooError(
                    f"data.init_args.class_names has {len(self._given_names)} names, but the masks "
                    f"of {self.root} have {len(found)} classes: {', '.join(found)}"
                )
            found = self._given_names
        self._names = tuple(found)

    def _pairs(self, split: str) -> Sequence[tuple[Path, ...]]:
        """(picture, mask) of each sample."""
        folders = {
            name: next((self.root / n for n in names if (self.root / n).is_dir()), None)
            for name, names in SPLITS.items()
        }
        if folders["train"] is None:
            pairs = self._folder_pairs(self.root)
            parts = shares(len(pairs))
            return [pairs[i] for i in parts[split]]
        if split == "test" and folders["test"] is None:
            split = "val"
        if folders["val"] is None and split != "test":
            pairs = self._folder_pairs(folders["train"])
            parts = shares(len(pairs), test=0.0)
            return [pairs[i] for i in parts[split]]
        folder = folders[split]
        assert folder is not None
        return self._folder_pairs(folder)

    def _folder_pairs(self, folder: Path) -> list[tuple[Path, ...]]:
        found = [
            next((folder / name for name in names if (folder / name).is_dir()), None)
            for names in (PICTURES, MASKS)
        ]
        for inside, names in zip(found, (PICTURES, MASKS), strict=True):
            if inside is None:
                raise ZooError(
                    f"{folder} has none of the folders {', '.join(names)}; expected {self.layout}"
                )
        return paired(*found)  # type: ignore[arg-type]

    def files(self, split: str) -> Sequence[tuple[Path, ...]]:
        """(picture, mask) of each sample; the classes are found first."""
        pairs = self._pairs(split)
        if self._names is None:
            self._find_classes()
            log.info("%s: classes %s", self.root, ", ".join(self.class_names))
        return pairs

    def read(self, item: tuple[Path, ...]) -> dict[str, Any]:
        """Picture and mask of one sample.

        Raises:
            ZooError: the mask has another size, or classes that the training masks lack.
        """
        picture, path = item
        image, mask = read_image(picture), self._mask(path)
        if image.shape[-2:] != mask.shape:
            raise ZooError(
                f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, but {picture.name} has "
                f"{image.shape[2]} x {image.shape[1]}"
            )
        return {"image": image, "mask": tv_tensors.Mask(mask)}

    def _mask(self, path: Path) -> np.ndarray:
        if self.colours:
            return _classes_of_colours(path, list(self.colours.values()))
        if self._numbers is None:
            return read_mask(path)
        values = _number_pixels(path)
        classes = np.searchsorted(self._numbers, values).clip(max=len(self._numbers) - 1)
        strange = values[(self._numbers[classes] != values) & (values != IGNORE)]
        if strange.size:
            raise ZooError(
                f"{path}: class {strange[0]}, but the training masks of {self.root} have "
                f"{', '.join(map(str, self._numbers))}"
            )
        return np.where(values == IGNORE, IGNORE, classes).astype(np.uint8)

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Mirror, cut and colour; normalise."""
        return self._finish(self._vary(sample) if self.augment else self._resize(sample))

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Resize and normalise."""
        return self._finish(self._resize(sample))

    def _finish(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        image, mask = sample["image"].as_subclass(Tensor), sample["mask"].as_subclass(Tensor)
        return {"image": self.to_input(image), "mask": mask.to(torch.int64)}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write silhouettes, their heads and their shirts, as numbers."""
        rng = np.random.default_rng(sample.seed)
        for split, count in (("train", sample.train), ("val", sample.val), ("test", sample.test)):
            for number in range(count):
                image, person = draw_portrait(rng, sample.size)
                lower = np.arange(sample.size)[:, None] > sample.size * 0.55
                write_image(folder / split / "images" / f"{number:05d}.jpg", image)
                mask = (person * (1 + lower)).astype(np.uint8)
                write_image(folder / split / "masks" / f"{number:05d}.png", mask)
        (folder / "classes.txt").write_text("background\nhead\nshirt\n")


def _number_pixels(path: Path) -> np.ndarray:
    """Numbers of classes, [H, W].

    Raises:
        ZooError: the mask has colours, or too great numbers.
    """
    values = read_label_pixels(path)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise ZooError(
            f"{path}: a mask of colours, expected numbers of classes; or say which colour is which "
            "class: data.init_args.colours={road: [128, 64, 128], ...}"
        )
    if values.size and not 0 <= values.min() <= values.max() <= IGNORE:
        raise ZooError(
            f"{path}: values {values.min()} to {values.max()}, expected classes from 0 to 254"
        )
    return values.astype(np.int64)


def _numbers_of(path: Path) -> set[int]:
    return set(np.unique(_number_pixels(path)).tolist())


def _are_yes_or_no(masks: Sequence[Path]) -> bool:
    """Whether each mask says yes and no, and all say yes in one colour."""
    marks: set[tuple[int, ...]] = set()
    for path in masks:
        try:
            read_mask(path)
        except ZooError:
            return False
        pixels = read_label_colours(path)
        if pixels.ndim == 2 and path.suffix.lower() not in LOSSY_SUFFIXES:
            grey = np.unique(pixels[(pixels > 1) & (pixels < NEARLY_WHITE)])
            if grey.size and grey[-1] <= NEARLY_BLACK:  # no soft edge has dark greys alone
                return False
        if pixels.ndim == 3:
            kinds = np.unique(pixels[..., :3].reshape(-1, min(3, pixels.shape[2])), axis=0)
            marks |= {tuple(kind) for kind in kinds.tolist() if len(set(kind)) > 1}
    return len(marks) <= 1


def _classes_of_colours(path: Path, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """[H, W]; colours that are nobody's do not count."""
    pixels = read_label_colours(path)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, -1)
    classes = np.full(pixels.shape[:2], IGNORE, np.uint8)
    for number, colour in enumerate(colours):
        classes[(pixels[..., :3] == np.asarray(colour)).all(-1)] = number
    if (classes == IGNORE).all():
        raise ZooError(f"{path}: none of the colours of data.init_args.colours")
    return classes
