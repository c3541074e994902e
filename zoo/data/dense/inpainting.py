"""Pictures to inpaint: the pictures, smoothed copies of them, and masks of holes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.data.formats.labels import read_mask
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.formats.pictures import list_pictures, paired
from zoo.data.synthetic.polygons import draw_holes, draw_polygons


class Inpainting(MapDataModule):
    """Pictures with holes.

    Batches: ``image`` and ``structure`` [B, 3, S, S] in -1..1, ``mask`` [B, 1, S, S], 1: hole.

    Layout, the authors' three roots under one: ``{train,val,test}/images/*``,
    ``{train,val,test}/structure/*`` (edge-preserving smoothed copies, by the same names), and
    ``masks/*``, white: hole (Liu et al.'s irregular masks, for example). Without ``val`` the test
    pictures serve. A training picture gets any mask, others always the same.

    Args:
        root: folder of the data set; ``sample`` makes flat polygons filled with fine patterns, the
            flat ones being the structure, and masks of blocks that cover a quarter.
        image_size: side S, a multiple of 64.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "{train,val,test}/{images,structure}/ with the same names, and masks/"
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, root: str, image_size: int = 256, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.image_size = image_size
        self._resize = v2.Resize([image_size, image_size], antialias=True)
        self._masks: list[Path] = []

    def files(self, split: str) -> Sequence[tuple[int, Path, Path]]:
        """(number, picture, smoothed picture) of each sample."""
        if split == "val" and not (self.root / "val").is_dir():
            split = "test"
        pairs = paired(*(self.existing(self.root / split / name) for name in _FOLDERS))
        self._masks = list_pictures(self.existing(self.root / "masks"))
        return [(i, a, b) for i, (a, b) in enumerate(pairs)]

    def read(self, item: tuple[int, Path, Path]) -> dict[str, Any]:
        """One picture with its smoothed copy."""
        number, image, smoothed = item
        return {"image": read_image(image), "structure": read_image(smoothed), "number": number}

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Any mask, mirrored at random."""
        mask = self.read_mask(int(torch.randint(len(self._masks), ())))
        return self._finish(sample, mask.flip(-1) if torch.rand(()) < 0.5 else mask)

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """The mask that belongs to the picture's number."""
        return self._finish(sample, self.read_mask(sample["number"] % len(self._masks)))

    def read_mask(self, number: int) -> Tensor:
        """[1, S, S], 1: hole."""
        mask = torch.from_numpy((read_mask(self._masks[number]) == 1).astype(np.uint8))
        return self._resize(tv_tensors.Mask(mask[None])).as_subclass(Tensor).float()

    def _finish(self, sample: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
        pictures = {
            name: self.to_input(self._resize(sample[name]).as_subclass(Tensor))
            for name in ("image", "structure")
        }
        return pictures | {"mask": mask}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write polygons, and masks of blocks."""
        rng = np.random.default_rng(sample.seed)
        for split in ("train", "val", "test"):
            for i in range(getattr(sample, split)):
                for name, picture in zip(_FOLDERS, draw_polygons(rng, sample.size), strict=True):
                    write_image(folder / split / name / f"{i:05d}.png", picture)
        for i in range(64):
            mask = draw_holes(rng, sample.size)
            write_image(folder / "masks" / f"{i:05d}.png", mask.astype(np.uint8) * 255)


_FOLDERS = ("images", "structure")
