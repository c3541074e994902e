"""EG1800 portraits: pictures of people and who is in them.

Layout as the authors of SINet packed it::

    Portrait/train.txt, val.txt                numbers, one a line
    Portrait/images_data_crop/00001.jpg
    Portrait/GT_png/00001_mask.png             more than 200: person
    Nukki/baidu_V1/{input,target}/             more training pictures, target: the same name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.labels import read_mask
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic.portraits import draw_portrait

FOREGROUND = 200
#: What the published weights of SINet were trained with, BGR, pixels in 0..255.
PORTRAIT_MEAN, PORTRAIT_STD = (107.304565, 115.69884, 132.35703), (63.97182, 65.1337, 68.29726)


class Portraits(MapDataModule):
    """Portraits; batches of ``image`` [B, 3, S, S] and ``mask`` [B, S, S], 1: person.

    Images are BGR and scaled as the published weights expect them. Training pictures are rotated,
    scaled, shifted and mirrored, change their colours and get blur or noise.

    Args:
        root: folder that holds ``Portrait``; ``sample`` makes silhouettes with dotted and striped
            shirts on cluttered grounds.
        image_size: side S, a multiple of 32.
        augmentation: of training pictures; ``none`` for tests of the network itself.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "Portrait/{train.txt,val.txt,images_data_crop/*.jpg,GT_png/*_mask.png}"
    class_names = ("background", "person")

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        augmentation: Literal["full", "none"] = "full",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_size = image_size
        size = [image_size, image_size]
        fill = {tv_tensors.Image: 128, tv_tensors.Mask: 0}
        self._resize = v2.Resize(size, antialias=True)
        color = v2.Compose(
            [
                v2.ColorJitter(brightness=(0.4, 1.6), saturation=(0.4, 1.6), contrast=(0.6, 1.4)),
                v2.RandomAdjustSharpness(1.2, p=0.5),
            ]
        )
        self._augment = v2.Compose(
            [
                self._resize,
                v2.RandomAffine(45, translate=(0.25, 0.25), scale=(0.5, 1.5), fill=fill),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([color], 0.5),
                v2.RandomApply([v2.GaussianBlur([3, 5])], 0.5),
                v2.RandomApply([_Noise(10)], 0.5),
            ]
            if augmentation == "full"
            else [self._resize]
        )

    def files(self, split: str) -> Sequence[tuple[Path, Path]]:
        """(picture, mask) of each sample; the authors' validation pictures are the test too."""
        folder = self.root / "Portrait"
        name = "train.txt" if split == "train" else "val.txt"
        with reading(folder / name, "a list of numbers, one a line"):
            numbers = [int(n) for n in (folder / name).read_text().split()]
        pairs = [
            (folder / "images_data_crop" / f"{n:05d}.jpg", folder / "GT_png" / f"{n:05d}_mask.png")
            for n in numbers
        ]
        if split == "train":
            for more in natural_sorted((self.root / "Nukki").glob("*/input/*")):
                pairs.append((more, more.parents[1] / "target" / more.name))
        return pairs

    def read(self, item: tuple[Path, Path]) -> dict[str, Any]:
        """Picture and mask of one sample."""
        mask = read_mask(item[1], FOREGROUND)
        return {"image": read_image(item[0]), "mask": tv_tensors.Mask(mask)}

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Augment and normalise."""
        return self._finish(self._augment(sample))

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Resize and normalise."""
        return self._finish(self._resize(sample))

    def _finish(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        image, mask = sample["image"].as_subclass(Tensor), sample["mask"].as_subclass(Tensor)
        return {"image": self.to_input(image), "mask": mask.long()}

    def to_input(self, image: Tensor) -> Tensor:
        """RGB, uint8 or 0..1 -> BGR, standardised, then divided by 255 as the authors do."""
        pixels = image.flip(-3) * (255.0 if image.is_floating_point() else 1.0)
        mean, std = (torch.tensor(v)[:, None, None] for v in (PORTRAIT_MEAN, PORTRAIT_STD))
        return (pixels - mean.to(image.device)) / std.to(image.device) / 255

    def to_display(self, image: Tensor) -> np.ndarray:
        """The network's input -> uint8 [H, W, 3] in RGB."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (PORTRAIT_MEAN, PORTRAIT_STD))
        pixels = image.detach().float().cpu() * 255 * std + mean
        return pixels.clamp(0, 255).round().byte().flip(-3).movedim(-3, -1).numpy()

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write silhouettes with noisy shirts."""
        rng = np.random.default_rng(sample.seed)
        portrait = folder / "Portrait"
        # the layout has two lists, its validation pictures are the test
        counts = {"train.txt": sample.train, "val.txt": max(sample.val, sample.test)}
        number = 1
        for name, count in counts.items():
            numbers = range(number, number + count)
            for n in numbers:
                image, mask = draw_portrait(rng, sample.size)
                write_image(portrait / "images_data_crop" / f"{n:05d}.jpg", image)
                write_image(portrait / "GT_png" / f"{n:05d}_mask.png", mask.astype(np.uint8) * 255)
            (portrait / name).write_text("".join(f"{n}\n" for n in numbers))
            number += count


class _Noise(torch.nn.Module):
    """Gaussian noise whose deviation is drawn up to ``most``, of pixels in 0..255."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add noise to the picture alone."""
        image = sample["image"]
        noise = torch.randn(image.shape) * (torch.rand(()) * self.most)
        noisy = (image + noise).clamp(0, 255).to(torch.uint8)
        return sample | {"image": tv_tensors.Image(noisy)}
