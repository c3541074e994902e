"""ADE20K (scene parsing challenge 2016): pictures and the class of each pixel.

Layout as published (``ADEChallengeData2016``)::

    images/{training,validation}/ADE_train_00000001.jpg
    annotations/{training,validation}/ADE_train_00000001.png    0: other, 1 to 150: classes
    objectInfo150.txt                                           a line for each class
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tf

from zoo.data.formats.crops import crop_place
from zoo.data.formats.files import natural_sorted
from zoo.data.formats.labels import read_labels
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic.streets_and_rooms import CLASSES, draw_scene
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE


class ADE20K(MapDataModule):
    """ADE20K; batches of ``image`` [B, 3, H, W] and ``mask`` [B, H, W], classes from 0, 255: other.

    Training pictures are scaled, cut, mirrored and change their colours as MMSegmentation's
    configuration has it; evaluation takes whole pictures in the size of :meth:`input_size` and
    labels in their own, one at a time unless they have one size. The validation pictures are the
    test.

    Args:
        root: folder that holds ``images``, ``annotations`` and ``objectInfo150.txt``; ``sample``
            makes streets and rooms, whose walls and windows look alike.
        crop: side of the training crops.
        short_side, long_side: no side of a scaled picture exceeds these.
        scale: range of a further random scale in training.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "images/{training,validation}/*.jpg, annotations/.../*.png and objectInfo150.txt"
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def __init__(
        self,
        root: str,
        crop: int = 512,
        short_side: int = 512,
        long_side: int = 2048,
        scale: tuple[float, float] = (0.5, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.crop, self.short_side, self.long_side = crop, short_side, long_side
        self.scale = scale
        jitters = [
            {"brightness": (0.875, 1.125)},
            {"contrast": (0.5, 1.5)},
            {"saturation": (0.5, 1.5)},
            {"hue": (-0.1, 0.1)},
        ]
        self._colours = v2.Compose(
            [v2.RandomApply([v2.ColorJitter(**jitter)], 0.5) for jitter in jitters]
        )

    @cached_property
    def class_names(self) -> Sequence[str]:
        """First name of each class, from ``objectInfo150.txt``."""
        path = self.existing(self.root / "objectInfo150.txt")
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:] if line.strip()]
        if not rows or any(len(row) < 2 for row in rows):
            raise ZooError(f"{path}: expected a line of columns, tabs between them, for each class")
        return [row[-1].split(",")[0].strip() for row in rows]

    def files(self, split: str) -> Sequence[tuple[Path, Path]]:
        """(picture, labels) of each sample."""
        folder = "training" if split == "train" else "validation"
        pictures = natural_sorted(self.existing(self.root / "images" / folder).glob("*.jpg"))
        labels = self.existing(self.root / "annotations" / folder)
        return [(path, labels / f"{path.stem}.png") for path in pictures]

    def read(self, item: tuple[Path, Path]) -> dict[str, Any]:
        """Picture and labels of one sample."""
        labels = read_labels(item[1])
        if labels.max() > len(self.class_names):
            raise ZooError(
                f"{item[1]}: a label of {labels.max()}, but objectInfo150.txt lists "
                f"{len(self.class_names)} classes"
            )
        mask = np.where(labels == 0, IGNORE, labels.astype(np.int64) - 1)
        return {"image": read_image(item[0]), "mask": tv_tensors.Mask(mask.astype(np.uint8))}

    def input_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Size in which the network sees a picture: as large as the sides allow."""
        long, short = max(height, width), min(height, width)
        factor = scale * min(self.long_side / long, self.short_side / short)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Scale, cut, mirror, change the colours."""
        scale = float(torch.empty(()).uniform_(*self.scale))
        size = list(self.input_size(*sample["image"].shape[-2:], scale))
        image = tf.resize(sample["image"], size, antialias=True)
        mask = tf.resize(sample["mask"], size)
        sides = [min(self.crop, side) for side in size]
        top, left = crop_place(mask.as_subclass(Tensor), sides)
        image, mask = (tf.crop(layer, top, left, *sides) for layer in (image, mask))
        if torch.rand(()) < 0.5:
            image, mask = tf.horizontal_flip(image), tf.horizontal_flip(mask)
        image = self.to_input(self._colours(image).as_subclass(Tensor))
        more = (0, self.crop - sides[1], 0, self.crop - sides[0])
        mask = pad(mask.as_subclass(Tensor).long(), more, value=IGNORE)
        return {"image": pad(image, more), "mask": mask}

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Scale the picture."""
        size = list(self.input_size(*sample["image"].shape[-2:]))
        image = tf.resize(sample["image"], size, antialias=True).as_subclass(Tensor)
        mask = sample["mask"].as_subclass(Tensor).long()
        return {"image": self.to_input(image), "mask": mask}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw streets and rooms."""
        rng = np.random.default_rng(sample.seed)
        lines = ["Idx\tRatio\tTrain\tVal\tName"]
        lines += [f"{i}\t0\t{sample.train}\t{sample.test}\t{n}" for i, n in enumerate(CLASSES, 1)]
        (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
        for split, short, count in (
            ("training", "train", sample.train),
            ("validation", "val", max(sample.val, sample.test)),
        ):
            for number in range(1, count + 1):
                image, labels = draw_scene(rng, sample.size)
                name = f"ADE_{short}_{number:08d}"
                write_image(folder / "images" / split / f"{name}.jpg", image)
                write_image(folder / "annotations" / split / f"{name}.png", labels)
