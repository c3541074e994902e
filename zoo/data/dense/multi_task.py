"""Pictures with labels for several dense tasks: NYUD-v2 and PASCAL-Context, as ATRC packed them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from zoo.data.formats.arrays import read_npy
from zoo.data.formats.labels import read_labels, read_mask
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic.mode_scenes import draw_modes
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE

#: What stands where a picture was padded, and where a label is unknown.
FILL = {"image": 0, "semseg": IGNORE, "human_parts": IGNORE, "sal": IGNORE, "edge": IGNORE}


class MultiTaskDataModule(MapDataModule):
    """Pictures with labels of several tasks.

    Batches: ``image`` [B, 3, H, W]; ``semseg``, ``human_parts``, ``sal`` and ``edge`` [B, H, W],
    classes, 255 unknown; ``depth`` [B, H, W] in metres, 0 unknown; ``normals`` [B, 3, H, W], unit
    vectors, 0 unknown. Training pictures are scaled by 0.5 to 2, cropped so that no class fills
    more than three quarters, mirrored, and change their colours; others are padded.

    Args:
        root: folder of the data set.
        size: (H, W), multiples of 16.
        tasks: which labels are read; None: all that the data set has.
        augmentation: of training pictures.
        kwargs: see :class:`MapDataModule`.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    #: Channels of an output for each task.
    outputs: Mapping[str, int]

    def __init__(
        self,
        root: str,
        size: tuple[int, int],
        tasks: Sequence[str] | None = None,
        augmentation: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        unknown = sorted(set(tasks or ()) - set(self.outputs))
        if unknown:
            raise ZooError(
                f"data.init_args.tasks: {unknown[0]!r} is no task of {type(self).__name__}, "
                f"expected some of {', '.join(self.outputs)}"
            )
        self.size, self.augmentation = tuple(size), augmentation
        self.tasks = tuple(self.outputs) if tasks is None else tuple(tasks)
        jitter = [
            v2.ColorJitter(brightness=0.125),
            v2.ColorJitter(contrast=0.5),
            v2.ColorJitter(saturation=0.5),
            v2.ColorJitter(hue=0.1),
        ]
        self._colours = v2.Compose([v2.RandomApply([one], 0.5) for one in jitter])

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Augment, normalise."""
        if self.augmentation:
            sample = self._crop(_scale(sample, random.uniform(0.5, 2.0)))
            if random.random() < 0.5:
                sample = _mirror(sample)
            sample = sample | {"image": self._colours(sample["image"])}
        return self.eval_transform(sample)

    def _crop(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """A place of the wanted size; ten tries for one that no class dominates."""
        room = [max(have - want, 0) for have, want in zip(_size(sample), self.size, strict=True)]
        for _ in range(10):
            top, left = (random.randint(0, most) for most in room)
            cut = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
            cropped = {name: value[cut] for name, value in sample.items()}
            if "semseg" not in cropped:
                break
            labels = cropped["semseg"]
            counts = labels[labels != IGNORE].unique(return_counts=True)[1]
            if len(counts) > 1 and counts.max() < 0.75 * counts.sum():
                break
        return cropped

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Normalise, pad around the middle."""
        sample = sample | {"image": self.to_input(sample["image"])}
        rows, columns = (
            max(want - have, 0) for have, want in zip(_size(sample), self.size, strict=True)
        )
        border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return {name: pad(v, border, value=FILL.get(name, 0)) for name, v in sample.items()}


class NYUD(MultiTaskDataModule):
    """NYUD-v2, 795 training and 654 validation pictures.

    Layout: ``gt_sets/{train,val}.txt`` (names, one a line), ``images/*.png``,
    ``segmentation/*.png`` (1 .. 40, 0: unknown), ``depth/*.npy`` (metres), ``normals/*.png``
    (components -1 .. 1 as 0 .. 255), ``edge/*.png`` (0 or 255).

    Args:
        root: folder of the data set; ``sample`` makes scenes of
            :mod:`zoo.data.synthetic.mode_scenes`.
        num_classes: of the segmentation.
        kwargs: see :class:`MultiTaskDataModule`.
    """

    layout = "gt_sets/{train,val}.txt, images, segmentation, depth, normals and edge"

    def __init__(
        self, root: str, size: tuple[int, int] = (448, 576), num_classes: int = 40, **kwargs: Any
    ) -> None:
        self.num_classes = num_classes
        self.outputs = {"semseg": num_classes, "depth": 1, "normals": 3, "edge": 1}
        super().__init__(root, size, **kwargs)

    def files(self, split: str) -> Sequence[str]:
        """Names; the validation pictures are the test too."""
        name = "train.txt" if split == "train" else "val.txt"
        return self.existing(self.root / "gt_sets" / name).read_text().split()

    def read(self, item: str) -> dict[str, Any]:
        """Picture and labels."""
        sample = {"image": read_image(self.root / "images" / f"{item}.png").as_subclass(Tensor)}
        if "semseg" in self.tasks:
            labels = read_labels(self.root / "segmentation" / f"{item}.png").astype(np.int64)
            labels = np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1)
            if (highest := int(labels[labels != IGNORE].max(initial=0))) >= self.num_classes:
                raise ZooError(
                    f"{self.root / 'segmentation' / item}.png: a label of {highest + 1}, expected "
                    f"1 to {self.num_classes}, data.init_args.num_classes"
                )
            sample["semseg"] = torch.from_numpy(labels)
        if "depth" in self.tasks:
            path = self.root / "depth" / f"{item}.npy"
            depth = read_npy(path, "an array of metres, [H, W]")
            sample["depth"] = torch.from_numpy(depth.astype(np.float32))
        if "normals" in self.tasks:
            sample["normals"] = read_normals(self.root / "normals" / f"{item}.png")
        if "edge" in self.tasks:
            edge = read_mask(self.root / "edge" / f"{item}.png")
            sample["edge"] = torch.from_numpy(edge.astype(np.int64))
        return sample

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write scenes; the list for validation has the ``test`` ones."""
        rng = np.random.default_rng(sample.seed)
        (folder / "gt_sets").mkdir()
        (folder / "depth").mkdir()
        for split, count in (("train", sample.train), ("val", max(sample.val, sample.test))):
            names = [f"{split}{i:05d}" for i in range(count)]
            for name in names:
                scene = draw_modes(rng, sample.size)
                write_image(folder / "images" / f"{name}.png", scene.image)
                write_image(folder / "segmentation" / f"{name}.png", scene.labels + 1)
                np.save(folder / "depth" / f"{name}.npy", scene.depth)
                write_image(folder / "normals" / f"{name}.png", scene.normals / 2 + 0.5)
                write_image(folder / "edge" / f"{name}.png", scene.edges.astype(np.uint8) * 255)
            (folder / "gt_sets" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))


def _size(sample: Mapping[str, Tensor]) -> tuple[int, int]:
    return tuple(sample["image"].shape[-2:])


def _scale(sample: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Resize all maps; what is larger is nearer."""
    size = [int(side * factor) for side in _size(sample)]
    nearest = v2.InterpolationMode.NEAREST
    scaled = {
        name: F.resize(value, size, antialias=True)
        if name == "image"
        else F.resize(value.reshape(-1, *_size(sample)), size, interpolation=nearest).reshape(
            *value.shape[:-2], *size
        )
        for name, value in sample.items()
    }
    return scaled | ({"depth": scaled["depth"] / factor} if "depth" in scaled else {})


def _mirror(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Left becomes right, also in the direction of normals."""
    mirrored = {name: value.flip(-1) for name, value in sample.items()}
    if "normals" in mirrored:
        mirrored["normals"] = mirrored["normals"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    return mirrored


def read_normals(path: Path) -> Tensor:
    """Picture of normals -> unit vectors [3, H, W], 0 where they have no length."""
    pixels = read_image(path).as_subclass(Tensor)
    vectors = pixels / 127.5 - 1
    length = vectors.norm(dim=0)
    # a missing normal is grey, 127 or 128
    return torch.where(length > 0.1, vectors / length.clamp(min=0.1), 0)
