"""SYSU-CD, LEVIR-CD+, WHU-CD, SECOND, xBD: as published, or as ChangeMamba's authors arrange them.

Where there is no ``val`` folder, the test pictures serve for validation, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from zoo.data.change.pairs import LABEL_FOLDERS, PAIR_FOLDERS, PairDataModule, stored_pair
from zoo.data.formats.files import by_stem
from zoo.data.formats.labels import read_label_colours, read_label_pixels, read_mask
from zoo.data.formats.map_files import write_geotiff
from zoo.data.formats.maps import SmallSample, write_image
from zoo.data.formats.pictures import list_pictures
from zoo.data.formats.rasters import open_raster
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


class BinaryChangeData(PairDataModule):
    """Pairs with a map of change; batches hold ``change``, 1: changed.

    Args:
        kwargs: see :class:`PairDataModule`.
    """

    labels = ("change",)
    #: Folders of the published layout: before, after, change.
    folders: ClassVar[tuple[str, str, str]]

    def pairs(self, folder: Path) -> Sequence[tuple[Any, ...]]:
        """(before, after, change) of each pair, in the published folders or others' names."""
        for pair in (self.folders[:2], *PAIR_FOLDERS):
            if (folder / pair[0]).is_dir():
                labels = [name for name in LABEL_FOLDERS if (folder / name).is_dir()]
                names = (*pair, next(iter(labels), self.folders[2]))
                return self.listed([self.existing(folder / name) for name in names])
        raise ZooError(f"{folder} holds no pairs, expected {self.layout}")

    def read(self, item: Any) -> dict[str, Any]:
        """One pair; :func:`zoo.data.formats.labels.read_mask` says what is change."""
        before, after, change = item
        return self.read_pair(before, after, change=read_mask(change))

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
        before, after, labels = self.big_pictures
        with self.open_pair(before, after) as pair, open_raster(labels) as raster:
            layers = [r.read(top, left, self.tile, self.tile)[0] for r in (*pair, raster)]
        mask = (layers[2][..., 0] > 0).astype(np.uint8)
        return stored_pair(*layers[:2], change=mask)

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

    def pairs(self, folder: Path) -> Sequence[tuple[Any, ...]]:
        """(before, after, cover before, cover after) of each pair, and the map of change or
        None."""
        published = (folder / "im1").is_dir()
        names = ("im1", "im2", "label1", "label2") if published else ("T1", "T2", "GT_T1", "GT_T2")
        names = names if published else (*names, "GT_CD")
        found = self.listed([self.existing(folder / name) for name in names])
        return [(*files, None) for files in found] if published else found

    def read(self, item: Any) -> dict[str, Any]:
        """One pair."""
        before, after, *covers, change = item
        pre, post = (_land_cover(path) for path in covers)
        mask = (pre > 0).astype(np.uint8) if change is None else read_mask(change)
        return self.read_pair(before, after, cover_pre=pre, cover_post=post, change=mask)

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

    def pairs(self, folder: Path) -> Sequence[tuple[Any, ...]]:
        """(before, after, buildings, damage) of each pair."""
        images = self.existing(folder / "images")
        targets = (folder / "targets").is_dir()
        masks = self.existing(folder / ("targets" if targets else "masks"))
        end = "_pre_disaster"
        pictures, labels = (by_stem(list_pictures(place)) for place in (images, masks))
        found = [name.removesuffix(end) for name in pictures if name.endswith(end)]
        files = []
        for name in self.listed_names(folder) or found:
            places = [
                (there, f"{name}_{date}_disaster{'_target' * (targets and there is labels)}")
                for there in (pictures, labels)
                for date in ("pre", "post")
            ]
            for there, stem in places:
                if stem not in there:
                    raise ZooError(f"{images if there is pictures else masks} lacks {stem}")
            files.append(tuple(there[stem] for there, stem in places))
        return files

    def read(self, item: Any) -> dict[str, Any]:
        """One pair."""
        before, after, *masks = item
        # the authors' masks repeat the labels in three channels
        damage = np.atleast_3d(read_label_pixels(masks[1]))[..., 0]
        if strange := sorted(set(np.unique(damage).tolist()) - {*range(len(DAMAGES)), IGNORE}):
            raise ZooError(f"{masks[1]}: a damage of {strange[0]}, expected 0 to 4")
        return self.read_pair(before, after, building=read_mask(masks[0]), damage=damage)

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


def _land_cover(path: Path) -> np.ndarray:
    """SECOND's labels, colours or indices -> indices."""
    values, colours = read_label_pixels(path), read_label_colours(path)
    known = np.array(SECOND_COLOURS) @ (65536, 256, 1)
    code = colours[..., :3].astype(np.int64) @ (65536, 256, 1) if colours.ndim == 3 else None
    # a palette's numbers are indices of the authors, unless its colours are the published ones
    coloured = values.ndim == 3 or (code is not None and bool(np.isin(code, known).all()))
    if coloured:
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
