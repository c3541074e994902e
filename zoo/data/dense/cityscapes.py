"""Cityscapes: streets, 19 classes.

Layout as published::

    leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png
    gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png       ids of all 34 classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tf

from zoo.data.formats.files import natural_sorted
from zoo.data.formats.labels import read_labels
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic import streets_and_rooms as made
from zoo.losses.segmentation import IGNORE

#: The classes that are scored, and their ids in the label files.
CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
_NUMBERS = np.full(256, IGNORE, np.uint8)
_NUMBERS[list(CLASSES.values())] = np.arange(len(CLASSES))


class Cityscapes(MapDataModule):
    """Cityscapes; batches of ``image`` [B, 3, H, W] and ``mask`` [B, H, W], 255: not scored.

    Training pictures are scaled (the logarithm is uniform), cut, padded and mirrored, as SINet's
    authors do; evaluation takes whole pictures. Those of ``val`` are the test, too.

    Args:
        root: folder of ``leftImg8bit`` and ``gtFine``; ``sample`` makes streets and rooms.
        crop: height and width of the training pieces.
        scale: range of the random scale.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/.../*_gtFine_labelIds.png"
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    class_names = tuple(CLASSES)

    def __init__(
        self,
        root: str,
        crop: tuple[int, int] = (1024, 2048),
        scale: tuple[float, float] = (0.5, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.crop, self.scale = crop, scale

    def files(self, split: str) -> Sequence[tuple[Path, Path]]:
        """(picture, labels) of each sample."""
        name = "train" if split == "train" else "val"
        pictures = natural_sorted(self.existing(self.root / "leftImg8bit" / name).glob("*/*.png"))
        labels = self.root / "gtFine" / name
        ends = "_leftImg8bit.png", "_gtFine_labelIds.png"
        return [(path, labels / path.parent.name / path.name.replace(*ends)) for path in pictures]

    def read(self, item: tuple[Path, Path]) -> dict[str, Any]:
        """Picture and labels of one sample."""
        mask = _NUMBERS[np.clip(read_labels(item[1]), 0, IGNORE)]
        return {"image": read_image(item[0]), "mask": tv_tensors.Mask(mask)}

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Scale, pad, cut, mirror."""
        low, high = (math.log(side) for side in self.scale)
        factor = math.exp(float(torch.empty(()).uniform_(low, high)))
        size = [round(side * factor) for side in sample["image"].shape[-2:]]
        image = tf.resize(sample["image"], size, antialias=True)
        mask = tf.resize(sample["mask"], size)
        more = [max(0, -(-(want - have) // 2)) for want, have in zip(self.crop, size, strict=True)][
            ::-1
        ]
        image, mask = tf.pad(image, more), tf.pad(mask, more, fill=IGNORE)
        top, left = (
            int(torch.randint(have - want + 1, ()))
            for want, have in zip(self.crop, image.shape[-2:], strict=True)
        )
        image, mask = (tf.crop(layer, top, left, *self.crop) for layer in (image, mask))
        if torch.rand(()) < 0.5:
            image, mask = tf.horizontal_flip(image), tf.horizontal_flip(mask)
        return self.eval_transform({"image": image, "mask": mask})

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Normalise."""
        image, mask = (sample[name].as_subclass(Tensor) for name in ("image", "mask"))
        return {"image": self.to_input(image), "mask": mask.long()}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw the streets and rooms of :mod:`zoo.data.synthetic.streets_and_rooms`."""
        ids = np.zeros(len(made.CLASSES) + 1, np.uint8)
        for number, name in (
            (made.SKY, "sky"),
            (made.BUILDING, "building"),
            (made.WINDOW, "building"),
            (made.TREE, "vegetation"),
            (made.GRASS, "terrain"),
            (made.WATER, "road"),
            (made.WALL, "wall"),
            (made.FLOOR, "sidewalk"),
        ):
            ids[number] = CLASSES[name]
        rng = np.random.default_rng(sample.seed)
        for split, count in (("train", sample.train), ("val", max(sample.val, sample.test))):
            for number in range(count):
                image, labels = made.draw_scene(rng, sample.size)
                name = f"made/made_{number:06d}_000019"
                write_image(folder / "leftImg8bit" / split / f"{name}_leftImg8bit.png", image)
                path = folder / "gtFine" / split / f"{name}_gtFine_labelIds.png"
                write_image(path, ids[labels])
