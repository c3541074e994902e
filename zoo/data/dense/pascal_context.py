"""PASCAL-Context with labels of five tasks, as ASTMT made and ATRC packed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat
from scipy.ndimage import laplace
from skimage.morphology import thin
from torch import Tensor

from zoo.data.dense.multi_task import MultiTaskDataModule, read_normals
from zoo.data.formats.arrays import read_mat
from zoo.data.formats.files import reading
from zoo.data.formats.labels import read_labels, read_mask
from zoo.data.formats.maps import SmallSample, read_image, write_image
from zoo.data.synthetic.mode_scenes import BACKGROUND, draw_modes
from zoo.losses.segmentation import IGNORE

#: Number of people among the classes of PASCAL VOC.
PERSON = 15
#: Parts of people (PASCAL-Part) in the six groups that are told apart; 0 is the rest.
PARTS = {
    "head hair lear rear lebrow rebrow leye reye mouth nose": 1,
    "neck torso": 2,
    "luarm ruarm": 3,
    "llarm rlarm lhand rhand": 4,
    "luleg ruleg": 5,
    "llleg rlleg lfoot rfoot": 6,
}
GROUP = {part: number for names, number in PARTS.items() for part in names.split()}
#: PASCAL-Context's numbers of the classes that NYUD-v2 has too: normals, which a network trained
#: there has estimated, count on these alone.
# fmt: off
INDOOR = frozenset([
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49,
    50, 51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101,
    104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165,
    172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228,
    230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275,
    281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319,
    323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380,
    383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430,
    432, 440, 441, 442, 443, 444, 446, 454, 457,
])
# fmt: on


class PASCALContext(MultiTaskDataModule):
    """PASCAL-Context, 4,998 training and 5,105 validation pictures.

    Layout: ``ImageSets/Context/{train,val}.txt``; ``JPEGImages/*.jpg``;
    ``semseg/VOC12/*.png`` or ``semseg/pascal-context/*.png`` (0 .. 20); ``human_parts/*.mat``
    (PASCAL-Part); ``sal_distill/*.png`` (more than 127: salient); ``normals_distill/*.png``;
    ``pascal-context/trainval/*.mat`` (``LabelMap`` of 459 classes, whose borders are the edges).

    Args:
        root: folder of the data set; ``sample`` makes scenes of
            :mod:`zoo.data.synthetic.mode_scenes`, whose objects pass for people of one part.
        kwargs: see :class:`MultiTaskDataModule`.
    """

    layout = (
        "ImageSets/Context/{train,val}.txt, JPEGImages, semseg, human_parts, sal_distill, "
        "normals_distill and pascal-context/trainval"
    )
    outputs = {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1}  # noqa: RUF012

    def __init__(self, root: str, size: tuple[int, int] = (512, 512), **kwargs: Any) -> None:
        super().__init__(root, size, **kwargs)

    def files(self, split: str) -> Sequence[str]:
        """Names; the validation pictures are the test too."""
        name = "train.txt" if split == "train" else "val.txt"
        return self.existing(self.root / "ImageSets/Context" / name).read_text().split()

    def read(self, item: str) -> dict[str, Any]:
        """Picture and labels."""
        image = read_image(self.root / "JPEGImages" / f"{item}.jpg").as_subclass(Tensor)
        sample = {"image": image}
        if {"edge", "normals"} & set(self.tasks):
            classes = _load(self.root / "pascal-context/trainval" / f"{item}.mat", "LabelMap")
        if "semseg" in self.tasks:
            places = [self.root / "semseg" / n / f"{item}.png" for n in ("VOC12", "pascal-context")]
            labels = read_labels(places[0] if places[0].is_file() else places[1])
            sample["semseg"] = torch.from_numpy(labels.astype(np.int64))
        if "human_parts" in self.tasks:
            sample["human_parts"] = self._parts(item, tuple(image.shape[-2:]))
        if "sal" in self.tasks:
            salient = read_mask(self.root / "sal_distill" / f"{item}.png", soft=True)
            sample["sal"] = torch.from_numpy(salient.astype(np.int64))
        if "normals" in self.tasks:
            normals = read_normals(self.root / "normals_distill" / f"{item}.png")
            known = torch.from_numpy(np.isin(classes, list(INDOOR)))
            sample["normals"] = normals * known
        if "edge" in self.tasks:
            borders = thin(laplace(classes.astype(np.int64)) != 0)
            sample["edge"] = torch.from_numpy(borders.astype(np.int64))
        return sample

    def _parts(self, item: str, size: tuple[int, int]) -> Tensor:
        """Parts of people [H, W]; all unknown in a picture without any."""
        path = self.root / "human_parts" / f"{item}.mat"
        annotation = _load(path, "anno")
        parts = torch.full(size, IGNORE)
        with reading(path, "annotations of PASCAL-Part that fit the picture"):
            objects = annotation["objects"]
            for one in objects if isinstance(objects, list) else [objects]:
                listed = one["parts"] if one["class_ind"] == PERSON else []
                for part in [listed] if isinstance(listed, dict) else list(listed):
                    if (parts == IGNORE).all():
                        parts[:] = 0
                    mask = torch.from_numpy(part["mask"].astype(bool))
                    parts[mask] = GROUP[str(part["part_name"])]
        return parts

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write scenes; the list for validation has the ``test`` ones."""
        rng = np.random.default_rng(sample.seed)
        for name in ("ImageSets/Context", "human_parts", "pascal-context/trainval"):
            (folder / name).mkdir(parents=True)
        for split, count in (("train", sample.train), ("val", max(sample.val, sample.test))):
            names = [f"{split}{i:05d}" for i in range(count)]
            for name in names:
                scene = draw_modes(rng, sample.size)
                objects = scene.labels != BACKGROUND
                labels = np.where(objects, scene.labels + 1, 0).astype(np.uint8)
                write_image(folder / "JPEGImages" / f"{name}.jpg", scene.image)
                write_image(folder / "semseg/VOC12" / f"{name}.png", labels)
                write_image(folder / "sal_distill" / f"{name}.png", objects.astype(np.uint8) * 255)
                write_image(folder / "normals_distill" / f"{name}.png", scene.normals / 2 + 0.5)
                whole = np.where(objects, min(INDOOR), max(INDOOR)).astype(np.uint16)
                savemat(folder / f"pascal-context/trainval/{name}.mat", {"LabelMap": whole})
                part = _struct(part_name="torso", mask=objects.astype(np.uint8))
                person = _struct(
                    **{"class": "person", "class_ind": PERSON, "mask": objects, "parts": part}
                )
                annotation = _struct(imname=name, objects=person)
                savemat(folder / f"human_parts/{name}.mat", {"anno": annotation})
            lines = "".join(f"{name}\n" for name in names)
            (folder / "ImageSets/Context" / f"{split}.txt").write_text(lines)


def _struct(**fields: Any) -> np.ndarray:
    """A Matlab struct array of one element."""
    array = np.empty((1, 1), dtype=[(name, object) for name in fields])
    for name, value in fields.items():
        array[0, 0][name] = value
    return array


def _load(path: Path, name: str) -> Any:
    """A variable of a Matlab file."""
    return read_mat(path, name, f"a Matlab file with {name}", simplify=True)
