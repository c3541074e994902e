"""Pictures of crowds with a point on each head: ShanghaiTech and UCF-QNRF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.v2 import functional as tf

from zoo.data.formats.arrays import read_mat, read_npy
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import MapDataModule, SmallSample, write_image
from zoo.data.formats.pictures import read_picture
from zoo.data.synthetic.discs import draw_discs
from zoo.errors import ZooError

#: Sizes of the network's maps are half of the image's.
STRIDE = 2


class CrowdDataModule(MapDataModule):
    """Crowds; a point (x, y) per head, in pixels.

    Batches: ``image`` [B, 3, H, W], ``density`` [B, 1, H/2, W/2] (its sum is the count),
    ``attention`` of the same shape (1 near heads), ``count`` [B], ``points`` and ``visible`` (lists
    of [N, 2] and [N]) and ``short_side`` [B]. Evaluation takes whole pictures, one at a time unless
    they have one size, resized to the nearest multiples of 16.

    Args:
        root: folder of the data set; ``sample`` makes discs of three sizes on noise, of which one
            size counts: a striped band at the left border tells which.
        crop: side of the training crops, a multiple of 16.
        scale: range of the random scale in training.
        gamma: range of a random gamma, with probability 0.3; null: none.
        gray: probability of a grey training picture.
        sigma: of the Gaussian on each head, in pixels.
        kwargs: see :class:`MapDataModule`.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def __init__(
        self,
        root: str,
        crop: int = 400,
        scale: tuple[float, float] = (0.8, 1.2),
        gamma: tuple[float, float] | None = (0.5, 1.5),
        gray: float = 0.1,
        sigma: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.crop, self.scale, self.gamma, self.gray = crop, scale, gamma, gray
        self.sigma = sigma

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Scale, cut, mirror, change the light."""
        picture, points, reach = sample["image"], sample["points"], sample["reach"]
        short = min(picture.size)
        factor = float(torch.empty(()).uniform_(*self.scale))
        factor = max(factor, self.crop / short)  # small pictures are scaled up to the crop
        width, height = (max(self.crop, round(side * factor)) for side in picture.size)
        points = points * [width / picture.size[0], height / picture.size[1]]
        reach = reach * factor
        image = tf.pil_to_tensor(picture.resize((width, height), Image.Resampling.BICUBIC))
        left = int(torch.randint(width - self.crop + 1, ()))
        top = int(torch.randint(height - self.crop + 1, ()))
        image = image[:, top : top + self.crop, left : left + self.crop] / 255
        points = points - [left, top]
        if torch.rand(()) < 0.5:
            image, points = image.flip(-1), points * [-1, 1] + [self.crop - 1, 0]
        if self.gamma and torch.rand(()) < 0.3:
            image = image ** float(torch.empty(()).uniform_(*self.gamma))
        if torch.rand(()) < self.gray:
            image = tf.rgb_to_grayscale(image, 3)
        return self._targets(image, points, reach, round(short * factor))

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Resize to multiples of 16."""
        picture, points = sample["image"], sample["points"]
        size = tuple(max(16, round(side / 16) * 16) for side in picture.size)
        image = tf.pil_to_tensor(picture.resize(size, Image.Resampling.BICUBIC)) / 255
        points = points * [size[0] / picture.size[0], size[1] / picture.size[1]]
        return self._targets(image, points, sample["reach"], min(size))

    def _targets(
        self, image: Tensor, points: np.ndarray, reach: np.ndarray, short: int
    ) -> dict[str, Any]:
        height, width = image.shape[-2:]
        inside = ((points >= 0) & (points < [width, height])).all(1)
        impulses = np.zeros((height, width), np.float32)
        columns, rows = points[inside].astype(int).T
        np.add.at(impulses, (rows, columns), 1)
        blurred = gaussian_filter(impulses, self.sigma, mode="reflect")
        density = torch.from_numpy(blurred)[None]
        visible = _visible_share(points, reach, width, height)
        kept = visible >= 0.3
        return {
            "image": self.to_input(image),
            "density": avg_pool2d(density, STRIDE) * STRIDE**2,
            "attention": interpolate((density > 1e-3).float()[None], scale_factor=1 / STRIDE)[0],
            "count": torch.tensor(float(inside.sum())),
            "points": torch.from_numpy(points[kept].astype(np.float32)),
            "visible": torch.from_numpy(visible[kept].astype(np.float32)),
            "short_side": torch.tensor(float(short)),
        }

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack all but the lists of points."""
        shapes = {tuple(sample["image"].shape[1:]) for sample in samples}
        if len(shapes) > 1:
            raise ZooError(
                f"pictures of {len(shapes)} sizes in one batch: set data.init_args.eval_batch_size "
                "to 1"
            )
        lists = ("points", "visible")
        batch = {
            name: torch.stack([sample[name] for sample in samples])
            for name in samples[0]
            if name not in lists
        }
        return batch | {name: [sample[name] for sample in samples] for name in lists}

    def sample_of(self, path: Path, points: np.ndarray, reach: np.ndarray | None) -> dict[str, Any]:
        """A stored sample; ``reach``: distance to the nearest heads."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return {
            "image": read_picture(path),
            "points": points,
            "reach": _mean_distance(points) if reach is None else reach,
        }


class ShanghaiTech(CrowdDataModule):
    """ShanghaiTech part A or B.

    Layout: ``train_data/images/IMG_1.jpg``, ``train_data/ground_truth/GT_IMG_1.mat`` and the same
    in ``test_data``. Every tenth training picture is for validation.

    Args:
        kwargs: see :class:`CrowdDataModule`.
    """

    layout = "train_data/ and test_data/ with images/IMG_*.jpg and ground_truth/GT_IMG_*.mat"

    def files(self, split: str) -> Sequence[Path]:
        """Pictures of a split."""
        folder = self.root / ("test_data" if split == "test" else "train_data") / "images"
        paths = natural_sorted(self.existing(folder).glob("*.jpg"))
        if split == "test":
            return paths
        return [p for i, p in enumerate(paths) if (i % 10 == 9) == (split == "val")]

    def read(self, item: Path) -> dict[str, Any]:
        """One picture and its points."""
        labels = item.parents[1] / "ground_truth" / f"GT_{item.stem}.mat"
        info = read_mat(labels, "image_info", "a MATLAB file with image_info")
        with reading(labels, "a MATLAB file with image_info"):
            points = np.asarray(info[0, 0][0, 0][0], np.float64).reshape(-1, 2)
        return self.sample_of(item, points, None)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write discs."""
        rng = np.random.default_rng(sample.seed)
        training = -(-sample.train * 10 // 9)
        for name, count in (("train_data", training), ("test_data", sample.test)):
            for i in range(1, count + 1):
                image, points = draw_discs(rng, sample.size)
                write_image(folder / name / "images" / f"IMG_{i}.jpg", image)
                info = np.empty((1, 1), object)
                info[0, 0] = {"location": points, "number": len(points)}
                labels = folder / name / "ground_truth" / f"GT_IMG_{i}.mat"
                labels.parent.mkdir(parents=True, exist_ok=True)
                savemat(labels, {"image_info": info})


class UCFQNRF(CrowdDataModule):
    """UCF-QNRF after the Bayesian loss's preparation.

    Layout: ``{train,val,test}/*.jpg`` with ``*.npy`` of the same name, [N, 2] (x, y) or [N, 3] with
    the mean distance to the three nearest heads. Without ``val`` the test pictures serve.

    Args:
        kwargs: see :class:`CrowdDataModule`.
    """

    layout = "train/ and test/ with *.jpg and *.npy"

    def files(self, split: str) -> Sequence[Path]:
        """Pictures of a split."""
        if split == "val" and not (self.root / "val").is_dir():
            split = "test"
        return natural_sorted(self.existing(self.root / split).glob("*.jpg"))

    def read(self, item: Path) -> dict[str, Any]:
        """One picture and its points."""
        labels = item.with_suffix(".npy")
        rows = read_npy(labels, "an array of points, [N, 2] or [N, 3]")
        if rows.ndim != 2 or rows.shape[1] not in (2, 3) or not np.isfinite(rows).all():
            raise ZooError(f"{labels}: an array of {rows.shape}, expected points, [N, 2] or [N, 3]")
        points, reach = np.split(rows, [2], axis=1)
        return self.sample_of(item, points, reach[:, 0] if reach.size else None)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write discs."""
        rng = np.random.default_rng(sample.seed)
        for name in ("train", "val", "test"):
            for i in range(getattr(sample, name)):
                image, points = draw_discs(rng, sample.size)
                write_image(folder / name / f"img_{i:04d}.jpg", image)
                rows = np.column_stack([points, _mean_distance(points)])
                np.save(folder / name / f"img_{i:04d}.npy", rows)


def _mean_distance(points: np.ndarray) -> np.ndarray:
    """Mean distance of each point to its three nearest, 128 for a lonely one."""
    if len(points) < 2:
        return np.full(len(points), 128.0)
    count = min(4, len(points))
    return cKDTree(points).query(points, count)[0][:, 1:].mean(1)


def _visible_share(points: np.ndarray, reach: np.ndarray, width: int, height: int) -> np.ndarray:
    """Share of each head's box that lies in the picture; boxes are 4 to 128 pixels wide."""
    side = np.clip(reach, 4, 128)[:, None]
    low = np.clip(points - side / 2, 0, [width, height])
    high = np.clip(points + side / 2, 0, [width, height])
    return (high - low).prod(1) / side[:, 0] ** 2
