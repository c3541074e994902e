"""Pairs of pictures of one place at two dates: SYSU-CD, LEVIR-CD+, WHU-CD, SECOND, xBD.

Each reader takes the data set as it is published, and as ChangeMamba's authors arrange it. Where
there is no ``val`` folder, the test pictures serve for validation, as in the authors' code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors

from zoo.data.formats.crops import crop_place
from zoo.data.formats.maps import (
    MapDataModule,
    SmallSample,
    read_image,
    read_label_pixels,
    read_labels,
    write_image,
)
from zoo.data.formats.rasters import open_raster, write_geotiff
from zoo.data.synthetic.change_scenes import COVERS, DAMAGES, Scene, draw_scene
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE

#: Colours of the published SECOND labels, by the index that the authors give them.
SECOND_COLOURS = (
    (255, 255, 255),  # unchanged
    (0, 128, 0),  # low vegetation
    (128, 128, 128),  # bare ground
    (0, 255, 0),  # tree
    (0, 0, 255),  # water
    (128, 0, 0),  # building
    (255, 0, 0),  # playground
)
#: Names of the folders of a pair, before and after, in any of the data sets.
PAIR_FOLDERS = (
    ("T1", "T2"),
    ("A", "B"),
    ("time1", "time2"),
    ("im1", "im2"),
    ("pre", "post"),
    ("before", "after"),
)


class PairDataModule(MapDataModule):
    """Pairs of pictures with labels.

    Batches: ``pre`` and ``post`` [B, 3, H, W], and the maps of ``labels`` [B, H, W] (255: not
    known). Training pairs are cut, mirrored and turned as the authors do; evaluation takes whole
    pictures, one at a time unless they have one size.

    Args:
        root: folder of the data set; ``sample`` makes scenes whose light, season and shadows change
            and that are not quite in register.
        crop: side of the training crops; smaller pictures are padded, their labels with 255.
        turn: how often a training pair is turned by 90 degrees: ``always`` once to three times, as
            the authors do; ``any``: not at all to three times; ``never``.
        kwargs: see :class:`MapDataModule`.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    #: Names of the label maps; the first one decides where a crop may lie.
    labels: ClassVar[tuple[str, ...]]

    def __init__(self, root: str, crop: int = 256, turn: str = "always", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
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

    def split_folder(self, split: str) -> Path:
        """Folder of a split; ``test`` for ``val`` where there is none."""
        if split == "val" and not (self.root / "val").is_dir():
            split = "test"
        return self.existing(self.root / split)

    def listed(self, split: str, found: Sequence[str]) -> list[str]:
        """Names of a split's pairs without ending: those of ``train.txt`` and the like, or all."""
        split = self.split_folder(split).name
        for name in (f"{split}.txt", f"{split}_list.txt"):
            if (self.root / name).is_file():
                lines = (self.root / name).read_text().split()
                return [line.removesuffix(".png") for line in lines]
        return list(found)

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


class BinaryChangeData(PairDataModule):
    """Pairs with a map of change; batches hold ``change``, 1: changed.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    labels = ("change",)
    #: Folders of the published layout: before, after, change.
    folders: ClassVar[tuple[str, str, str]]

    def files(self, split: str) -> Sequence[Any]:
        """(before, after, change) of each pair."""
        folder = self.split_folder(split)
        for triple in (self.folders, ("T1", "T2", "GT")):
            if (folder / triple[0]).is_dir():
                places = [self.existing(folder / name) for name in triple]
                names = self.listed(split, sorted(path.stem for path in places[0].glob("*.png")))
                return [tuple(place / f"{name}.png" for place in places) for name in names]
        raise ZooError(f"{folder} holds no pairs, expected {self.layout}")

    def read(self, item: Any) -> dict[str, Any]:
        """One pair; a label above 127 is change."""
        before, after, change = item
        mask = (read_labels(change) > 127).astype(np.uint8)
        return _sample(read_image(before), read_image(after), change=mask)

    def write(self, folder: Path, name: str, scene: Scene) -> None:
        """Pictures and 0/255 labels."""
        change = scene.building_change.astype(np.uint8) * 255
        for place, pixels in zip(self.folders, (scene.pre, scene.post, change), strict=True):
            write_image(folder / place / f"{name}.png", pixels)


class SYSUCD(BinaryChangeData):
    """SYSU-CD: 20,000 pairs of 256x256 pixels, change of any kind.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    layout = "{train,val,test}/{time1,time2,label}/*.png, or {train,test}/{T1,T2,GT}/*.png"
    folders = ("time1", "time2", "label")


class LEVIRCDPlus(BinaryChangeData):
    """LEVIR-CD+: 985 pairs of 1024x1024 pixels, buildings.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    layout = "{train,test}/{A,B,label}/*.png, or {train,test}/{T1,T2,GT}/*.png"
    folders = ("A", "B", "label")

    def made_splits(self, sample: SmallSample) -> dict[str, int]:
        """It has no validation pictures."""
        return {"train": sample.train, "test": sample.test}


class WHUCD(BinaryChangeData):
    """WHU-CD: buildings of Christchurch in 2012 and 2016, one pair of 15354x32507 pixels.

    The big pictures are read in tiles, the left 21,243 columns for training, the rest (or their
    share of narrower ones) for test; or cut ones are read like the other sets'.

    Args:
        tile: side of the tiles.
        kwargs: see :class:`PairDataModule`.
    """

    layout = (
        "'1. The two-period image data'/{before/before.tif,after/after.tif,"
        "'change label'/change_label.tif}, or {train,test}/{A,B,label}/*.png, or "
        "{train,test}/{T1,T2,GT}/*.png"
    )
    folders = ("A", "B", "label")
    big: ClassVar[tuple[str, ...]] = (
        "before/before.tif",
        "after/after.tif",
        "change label/change_label.tif",
    )
    training_share: ClassVar[float] = 21243 / 32507

    def __init__(self, root: str, tile: int = 256, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.tile = tile

    @property
    def big_pictures(self) -> list[Path]:
        """The published files."""
        return [self.root / "1. The two-period image data" / name for name in self.big]

    def files(self, split: str) -> Sequence[Any]:
        """(top, left) of the tiles, or files of cut pictures."""
        if not self.big_pictures[0].is_file():
            return super().files(split)
        with open_raster(self.existing(self.big_pictures[2])) as raster:
            height, width = raster.height, raster.width
        middle = round(width * self.training_share)
        left, right = (0, middle) if split == "train" else (middle, width)
        return [
            (y, x)
            for y in range(0, height - self.tile + 1, self.tile)
            for x in range(left, right - self.tile + 1, self.tile)
        ]

    def read(self, item: Any) -> dict[str, Any]:
        """One pair."""
        if isinstance(item[0], Path):
            return super().read(item)
        top, left = item
        layers = []
        for path in self.big_pictures:
            with open_raster(path) as raster:
                layers.append(raster.read(top, left, self.tile, self.tile)[0])
        before, after, change = layers
        mask = (change[..., 0] > 0).astype(np.uint8)
        return _sample(_image(before), _image(after), change=mask)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Draw the big pair, in rows of four scenes."""
        rng = np.random.default_rng(sample.seed)
        rows = 4
        train, test = -(-sample.train // rows), -(-sample.test // rows)
        columns = max(math.ceil(train / self.training_share), train + test)
        scenes = [[draw_scene(rng, sample.size) for _ in range(columns)] for _ in range(rows)]
        layers = {
            "before/before.tif": [[s.pre for s in row] for row in scenes],
            "after/after.tif": [[s.post for s in row] for row in scenes],
            "change label/change_label.tif": [
                [s.building_change.astype(np.uint8)[..., None] * 255 for s in row] for row in scenes
            ],
        }
        for name, parts in layers.items():
            path = folder / "1. The two-period image data" / name
            write_geotiff(path, np.concatenate([np.concatenate(row, 1) for row in parts]))


class SECOND(PairDataModule):
    """SECOND: 512x512 pixels, change between six land covers.

    Batches hold ``change``, and ``cover_pre`` and ``cover_post``: 0 unchanged, then
    :data:`~zoo.data.synthetic.change_scenes.COVERS`. Labels are the published colours, or the
    authors' indices.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    layout = (
        "{train,test}/{im1,im2,label1,label2}/*.png (labels in colours), or "
        "{train,test}/{T1,T2,GT_CD,GT_T1,GT_T2}/*.png (indices)"
    )
    labels = ("cover_pre", "cover_post", "change")
    class_names = COVERS

    def files(self, split: str) -> Sequence[Any]:
        """(before, after, cover before, cover after) of each pair, and the map of change or
        None."""
        folder = self.split_folder(split)
        published = (folder / "im1").is_dir()
        names = ("im1", "im2", "label1", "label2") if published else ("T1", "T2", "GT_T1", "GT_T2")
        places = [self.existing(folder / name) for name in names]
        found = self.listed(split, sorted(path.stem for path in places[0].glob("*.png")))
        change = None if published else self.existing(folder / "GT_CD")
        return [
            (*(place / f"{name}.png" for place in places), change and change / f"{name}.png")
            for name in found
        ]

    def read(self, item: Any) -> dict[str, Any]:
        """One pair."""
        before, after, *covers, change = item
        pre, post = (_land_cover(path) for path in covers)
        mask = pre > 0 if change is None else read_labels(change) > 127
        labels = {"cover_pre": pre, "cover_post": post, "change": mask.astype(np.uint8)}
        return _sample(read_image(before), read_image(after), **labels)

    def write(self, folder: Path, name: str, scene: Scene) -> None:
        """Pictures and coloured labels."""
        colours = np.array(SECOND_COLOURS, np.uint8)
        layers = {"im1": scene.pre, "im2": scene.post}
        for place, cover in (("label1", scene.cover_pre), ("label2", scene.cover_post)):
            layers[place] = colours[np.where(scene.change, cover, 0)]
        for place, pixels in layers.items():
            write_image(folder / place / f"{name}.png", pixels)

    def made_splits(self, sample: SmallSample) -> dict[str, int]:
        """It has no validation pictures."""
        return {"train": sample.train, "test": sample.test}


class XBD(PairDataModule):
    """xBD (xView2): 1024x1024 pixels before and after a disaster, damage of buildings.

    Batches hold ``building`` (before) and ``damage``: 0 background, 1 no, 2 minor, 3 major damage,
    4 destroyed. Training labels of damage are known on buildings alone, as in the authors' code.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    layout = (
        "{train,test}/images/*_{pre,post}_disaster.png with "
        "targets/*_{pre,post}_disaster_target.png or masks/*_{pre,post}_disaster.png"
    )
    labels = ("building", "damage")
    class_names = DAMAGES

    def files(self, split: str) -> Sequence[Any]:
        """(before, after, buildings, damage) of each pair."""
        folder = self.split_folder(split)
        images = self.existing(folder / "images")
        targets = (folder / "targets").is_dir()
        masks = self.existing(folder / ("targets" if targets else "masks"))
        ending = "_target.png" if targets else ".png"
        end = "_pre_disaster.png"
        found = sorted(path.name.removesuffix(end) for path in images.glob(f"*{end}"))
        return [
            tuple(
                place / f"{name}_{date}_disaster{suffix}"
                for place, suffix in ((images, ".png"), (masks, ending))
                for date in ("pre", "post")
            )
            for name in self.listed(split, found)
        ]

    def read(self, item: Any) -> dict[str, Any]:
        """One pair."""
        before, after, *masks = item
        # the authors' masks repeat the labels in three channels
        building, damage = (np.atleast_3d(read_label_pixels(path))[..., 0] for path in masks)
        labels = {"building": (building > 0).astype(np.uint8), "damage": damage}
        return _sample(read_image(before), read_image(after), **labels)

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Also forget the damage of the background."""
        batch = super().train_transform(sample)
        batch["damage"] = batch["damage"].where(batch["damage"] > 0, IGNORE)
        return batch

    def draw(self, rng: np.random.Generator, size: int) -> Scene:
        """Buildings that stand, some of them damaged."""
        return draw_scene(rng, size, damage=True)

    def write(self, folder: Path, name: str, scene: Scene) -> None:
        """Pictures and targets."""
        building = (scene.damage > 0).astype(np.uint8)
        for date, pixels, target in (
            ("pre", scene.pre, building),
            ("post", scene.post, scene.damage),
        ):
            stem = f"made-disaster_{name}_{date}_disaster"
            write_image(folder / "images" / f"{stem}.png", pixels)
            write_image(folder / "targets" / f"{stem}_target.png", target)

    def made_splits(self, sample: SmallSample) -> dict[str, int]:
        """It has no validation pictures."""
        return {"train": sample.train, "test": sample.test}


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


def _sample(pre: Tensor, post: Tensor, **labels: np.ndarray) -> dict[str, Any]:
    shapes = {tuple(layer.shape[-2:]) for layer in (pre, post, *labels.values())}
    if len(shapes) > 1:
        raise ZooError(
            f"a pair and its labels of {len(shapes)} sizes ({', '.join(map(str, shapes))}), "
            "expected one"
        )
    masks = {name: tv_tensors.Mask(label.astype(np.uint8)) for name, label in labels.items()}
    return {"pre": pre, "post": post, **masks}


def _image(pixels: np.ndarray) -> tv_tensors.Image:
    return tv_tensors.Image(pixels.transpose(2, 0, 1).copy())


def _land_cover(path: Path) -> np.ndarray:
    """SECOND's labels, colours or indices -> indices."""
    values = read_label_pixels(path)
    coloured = values.ndim == 3
    if coloured:
        code = values[..., :3].astype(np.int64) @ (65536, 256, 1)
        known = np.array(SECOND_COLOURS) @ (65536, 256, 1)
        values = np.full(code.shape, IGNORE, np.uint8)
        for index, colour in enumerate(known):
            values[code == colour] = index
    if values.max() >= len(COVERS):
        what = "colours that are none of SECOND's" if coloured else "values above 6"
        raise ZooError(
            f"{path}: {what}, expected the published colours (white where nothing changed) or "
            "indices 0 to 6"
        )
    return values
