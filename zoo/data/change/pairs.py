"""Pairs of pictures of one place at two dates: what the data sets of change share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors

from zoo.data.base import shares
from zoo.data.formats.crops import crop_place
from zoo.data.formats.files import by_stem, reading
from zoo.data.formats.maps import MapDataModule, SmallSample
from zoo.data.formats.pictures import PICTURE_SUFFIXES, list_pictures, paired
from zoo.data.formats.rasters import Raster, open_pair
from zoo.data.synthetic.change_scenes import Scene, draw_scene
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE

#: Names of the folders of a pair, before and after, in any of the data sets.
PAIR_FOLDERS = (
    ("T1", "T2"),
    ("A", "B"),
    ("time1", "time2"),
    ("im1", "im2"),
    ("pre", "post"),
    ("before", "after"),
)


#: And of the map of change beside them.
LABEL_FOLDERS = ("label", "labels", "GT", "gt", "OUT", "mask", "masks", "change")

log = logging.getLogger("zoo")


class PairDataModule(MapDataModule):
    """Pairs of pictures with labels.

    Batches: ``pre`` and ``post`` [B, 3, H, W], and the maps of ``labels`` [B, H, W] (255: not
    known). Training pairs are cut, mirrored and turned as the authors do; evaluation takes whole
    pictures, one at a time unless they have one size.

    A split without a folder is served by that of ``val`` or ``test``; without either, a tenth of
    the training pairs is kept for each.

    Args:
        root: folder of the data set; ``sample`` makes scenes whose light, season and shadows change
            and that are not quite in register.
        crop: side of the training crops; smaller pictures are padded, their labels with 255.
        turn: how often a training pair is turned by 90 degrees: ``always`` once to three times, as
            the authors do; ``any``: not at all to three times; ``never``.
        bands: of TIFF files, the numbers from 1 of red, green and blue; null: those that the file
            says are, or the first three.
        value_range: of TIFF files of more than 8 bits, the values that become black and white;
            null: in each pair and band the 2nd and 98th percentile of both dates together.
        kwargs: see :class:`MapDataModule`.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    #: Names of the label maps; the first one decides where a crop may lie.
    labels: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str,
        crop: int = 256,
        turn: str = "always",
        bands: tuple[int, int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ZooError(
                f"data.init_args.value_range is {list(value_range)}, expected a lower and a higher "
                "value"
            )
        self.bands, self.value_range = bands, value_range
        turns = {"always": (1, 4), "any": (0, 4), "never": (0, 1)}
        if turn not in turns:
            raise ZooError(f"data.init_args.turn is {turn!r}, expected always, any or never")
        self.crop, self.turns = crop, turns[turn]

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Cut, mirror and turn."""
        layers = _framed(sample, self.crop)
        top, left = crop_place(layers[self.labels[0]], (self.crop, self.crop))
        flips = [dim for dim in (-1, -2) if torch.rand(()) < 0.5]
        turn = int(torch.randint(*self.turns, ()))
        for name, layer in layers.items():
            cut = layer[..., top : top + self.crop, left : left + self.crop].flip(flips)
            layers[name] = cut.rot90(turn, (-2, -1)).contiguous()
        return self._finish(layers)

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """The whole picture."""
        return self._finish({name: layer.as_subclass(Tensor) for name, layer in sample.items()})

    def _finish(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        images = {name: self.to_input(layers[name]) for name in ("pre", "post")}
        return images | {name: layers[name].long() for name in self.labels}

    def collate(self, samples: list[Any]) -> Any:
        """Samples of one size -> batch."""
        sizes = {tuple(sample["pre"].shape[1:]) for sample in samples}
        if len(sizes) > 1:
            raise ZooError(
                f"pictures of {len(sizes)} sizes in one batch: set data.init_args.eval_batch_size "
                "to 1"
            )
        return super().collate(samples)

    def files(self, split: str) -> Sequence[Any]:
        """The pairs of a split, from the folder that has them or serves for it."""
        here = {name for name in ("train", "val", "test") if (self.root / name).is_dir()}
        if split in here or "train" not in here:
            pairs = list(self.pairs(self.existing(self.root / split)))
            if split != "train" or len(here) > 1:
                return pairs
        elif len(here) == 2:
            other = "test" if split == "val" else "val"
            log.warning(
                "%s has no folder %s: the pairs of %s serve for it", self.root, split, other
            )
            return self.pairs(self.root / other)
        else:
            pairs = list(self.pairs(self.root / "train"))
            log.warning(
                "%s has the folder train alone: a tenth of its pairs is kept for %s",
                *(self.root, split),
            )
        return [pairs[i] for i in shares(len(pairs))[split]]

    @abstractmethod
    def pairs(self, folder: Path) -> Sequence[tuple[Any, ...]]:
        """What :meth:`read` needs for each pair of a split's folder."""

    def listed_names(self, folder: Path) -> list[str] | None:
        """Names without ending in ``train.txt`` and the like of a split's folder; None: no list."""
        for path in (self.root / f"{folder.name}.txt", self.root / f"{folder.name}_list.txt"):
            if path.is_file():
                with reading(path, "a list of names, one a line"):
                    return [_without_ending(line) for line in path.read_text().split()]
        return None

    def listed(self, places: Sequence[Path]) -> list[tuple[Path, ...]]:
        """Files of one name in the folders ``places`` of a split, whatever their endings: those of
        its list, or all."""
        names = self.listed_names(places[0].parent)
        if names is None:
            return paired(*places)
        files = [by_stem(list_pictures(place)) for place in places]
        for place, there in zip(places, files, strict=True):
            if lonely := [name for name in names if name not in there]:
                raise ZooError(f"{place} lacks {lonely[0]}, which a list in {self.root} names")
        return [tuple(there[name] for there in files) for name in names]

    def open_pair(self, before: Path, after: Path) -> AbstractContextManager[tuple[Raster, Raster]]:
        """Two pictures of one place, see :func:`zoo.data.formats.rasters.open_pair`."""
        return open_pair(before, after, self.bands, self.value_range)

    def read_pair(self, before: Path, after: Path, **labels: np.ndarray) -> dict[str, Any]:
        """A stored sample: the pictures, and labels that fit them, 255 where nothing is known."""
        with self.open_pair(before, after) as pair:
            read = [raster.read(0, 0, raster.height, raster.width) for raster in pair]
        known = read[0][1] & read[1][1]
        if odd := [name for name, label in labels.items() if label.shape != known.shape]:
            raise ZooError(
                f"{before} has {known.shape[0]} x {known.shape[1]} pixels and its labels of "
                f"{odd[0]} {' x '.join(map(str, labels[odd[0]].shape))}, expected one size"
            )
        labels = {name: np.where(known, label, IGNORE) for name, label in labels.items()}
        return stored_pair(*(pixels for pixels, _ in read), **labels)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw scenes."""
        rng = np.random.default_rng(sample.seed)
        for split, count in self.made_splits(sample).items():
            for number in range(count):
                self.write(folder / split, f"{number:05d}", self.draw(rng, sample.size))

    def made_splits(self, sample: SmallSample) -> dict[str, int]:
        """Folder -> number of pairs."""
        return {"train": sample.train, "val": sample.val, "test": sample.test}

    def draw(self, rng: np.random.Generator, size: int) -> Scene:
        """One made place."""
        return draw_scene(rng, size)

    @abstractmethod
    def write(self, folder: Path, name: str, scene: Scene) -> None:
        """Write a made place in the published layout."""


def _framed(layers: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Layers [..., H, W] that are smaller than a square in a frame at a random place: pictures in
    black, labels in 255."""
    height, width = next(iter(layers.values())).shape[-2:]
    full = (max(height, side), max(width, side))
    if full == (height, width):
        return {name: layer.as_subclass(Tensor) for name, layer in layers.items()}
    top, left = (
        int(torch.randint(b - a + 1, ())) for a, b in ((height, full[0]), (width, full[1]))
    )
    frames = {}
    for name, layer in layers.items():
        fill = 0 if layer.ndim == 3 else IGNORE
        frames[name] = torch.full((*layer.shape[:-2], *full), fill, dtype=layer.dtype)
        frames[name][..., top : top + height, left : left + width] = layer
    return frames


def stored_pair(pre: np.ndarray, post: np.ndarray, **labels: np.ndarray) -> dict[str, Any]:
    """A stored sample of pictures uint8 [H, W, 3] and labels [H, W].

    Raises:
        ZooError: they have several sizes.
    """
    sizes = {layer.shape[:2] for layer in (pre, post, *labels.values())}
    if len(sizes) > 1:
        raise ZooError(
            f"a pair and its labels of {len(sizes)} sizes ({', '.join(map(str, sizes))}), "
            "expected one"
        )
    images = {
        name: tv_tensors.Image(pixels.transpose(2, 0, 1).copy())
        for name, pixels in (("pre", pre), ("post", post))
    }
    return images | {n: tv_tensors.Mask(label.astype(np.uint8)) for n, label in labels.items()}


def _without_ending(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name
