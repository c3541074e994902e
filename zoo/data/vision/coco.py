"""COCO (2017): pictures, and the boxes and outlines of the objects in them.

Layout as published::

    train2017/000000000009.jpg, val2017/...
    annotations/instances_train2017.json, instances_val2017.json
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tf

from zoo.data.formats.files import reading
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic.figures import CATEGORIES, draw_figures
from zoo.errors import ZooError


class COCO(MapDataModule):
    """COCO, or any data set in its layout; a batch is a dictionary of lists, one entry a picture.

    ``image`` [3, H, W] in 0..1; ``boxes`` [N, 4] (left, top, right, bottom in pixels); ``labels``
    [N] from 0, in the order of the categories' numbers; ``masks`` [N, H, W] bool; ``iscrowd`` [N]:
    a group of objects, which training leaves out. Training pictures are mirrored half of the time,
    and those without objects are left out. The validation pictures are the test.

    Args:
        root: folder that holds ``annotations`` and a folder of pictures for each split; ``sample``
            makes pictures of discs, squares and triangles.
        year: at the end of the names.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg"

    def __init__(self, root: str, year: str = "2017", **kwargs: Any) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise ZooError("COCO's files need pycocotools: pip install 'ssm-zoo[detection]'")
        super().__init__(root, **kwargs)
        self.year = year
        self._indices: dict[str, Any] = {}

    @cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the categories, in the order of their numbers."""
        categories = self._index("val").cats
        return [categories[number]["name"] for number in sorted(categories)]

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {number: i for i, number in enumerate(sorted(self._index("val").cats))}

    def _name(self, split: str) -> str:
        return f"{'train' if split == 'train' else 'val'}{self.year}"

    def _index(self, split: str) -> Any:
        """Pycocotools' index of the annotations, read once."""
        name = self._name(split)
        if name not in self._indices:
            from pycocotools.coco import COCO as Index

            path = self.existing(self.root / "annotations" / f"instances_{name}.json")
            quiet = contextlib.redirect_stdout(io.StringIO())
            with reading(path, "COCO's JSON of images, annotations and categories"), quiet:
                index = Index(str(path))
                for key in ("images", "annotations", "categories"):
                    index.dataset[key]
            self._indices[name] = index
        return self._indices[name]

    def files(self, split: str) -> Sequence[tuple[str, int]]:
        """(split, number of the picture) of each sample."""
        index = self._index(split)
        numbers = sorted(index.imgs)
        if split == "train":
            numbers = [n for n in numbers if index.getAnnIds(n, iscrowd=False)]
        return [(split, number) for number in numbers]

    def read(self, item: tuple[str, int]) -> dict[str, Any]:
        """Picture and objects of one sample; objects without extent are left out."""
        split, number = item
        index, folder = self._index(split), self.root / self._name(split)
        image = read_image(self.existing(folder / index.imgs[number]["file_name"]))
        height, width = image.shape[-2:]
        objects = [
            found
            for found in index.loadAnns(index.getAnnIds(number))
            if min(found["bbox"][2:]) > 0 and found["category_id"] in self._labels
        ]
        boxes = torch.tensor([found["bbox"] for found in objects]).reshape(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        with reading(folder, f"outlines that fit picture {number} of {height} x {width} pixels"):
            masks = [index.annToMask(found).reshape(height, width) for found in objects]
        return {
            "image": image,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([self._labels[o["category_id"]] for o in objects]).long(),
            "masks": tv_tensors.Mask(np.array(masks, bool).reshape(-1, height, width)),
            "iscrowd": torch.tensor([o.get("iscrowd", 0) for o in objects]).long(),
        }

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Leave groups out, mirror."""
        single = sample["iscrowd"] == 0
        kept = {
            name: tv_tensors.wrap(value[single], like=value) if name != "image" else value
            for name, value in sample.items()
        }
        if torch.rand(()) < 0.5:
            for name in ("image", "boxes", "masks"):
                kept[name] = tf.horizontal_flip(kept[name])
        return self.eval_transform(kept)

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """The picture as it is; the detector scales it."""
        plain = {name: value.as_subclass(Tensor) for name, value in sample.items()}
        return plain | {"image": self.to_input(plain["image"])}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Pictures differ in size and number of objects: lists."""
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw figures that overlap, on a textured ground."""
        rng = np.random.default_rng(sample.seed)
        categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
        for split, count in (("train", sample.train), ("val", max(sample.val, sample.test))):
            images, annotations = [], []
            for number in range(1, count + 1):
                picture, objects = draw_figures(rng, sample.size)
                name = f"{number:012d}.jpg"
                write_image(folder / f"{split}{self.year}" / name, picture)
                side = {"height": sample.size, "width": sample.size}
                images.append({"id": number, "file_name": name, **side})
                for found in objects:
                    identity = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
                    annotations.append(found | identity)
            path = folder / "annotations" / f"instances_{split}{self.year}.json"
            path.parent.mkdir(exist_ok=True)
            content = {"images": images, "annotations": annotations, "categories": categories}
            path.write_text(json.dumps(content))
