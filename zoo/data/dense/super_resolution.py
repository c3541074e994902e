"""Pictures to be sharpened: DIV2K's layout, and folders of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data.formats.degradation import bicubic, real_esrgan
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.formats.pictures import list_pictures, paired
from zoo.data.synthetic.photographs import JUDGED, LEARNT, crops
from zoo.errors import ZooError


class SuperResolution(MapDataModule):
    """Sharp pictures, and smaller copies of them.

    Batches: ``image`` [B, 3, S, S] and for each scale ``low_<scale>`` [B, 3, S/scale, S/scale], all
    in -1..1. Training pictures are cut at random, mirrored and turned; all scales of one picture
    come from one draw of the degradation.

    Layout: ``DIV2K_train_HR/*.png`` (other folders can be named) and ``DIV2K_valid_HR/*.png``. A
    test with given low-resolution pictures has ``gt/`` and ``lq/`` of the same names, as StableSR's
    sets do.

    Args:
        root: folder of the data set; ``sample`` writes crops of scikit-image's pictures, with
            their colour channels exchanged at random in those to learn from.
        size: side S of a training crop.
        scales: of the smaller copies.
        degradation: ``bicubic``, or ``real_esrgan`` in training and evaluation.
        train: folders with training pictures, below ``root`` or anywhere.
        eval_size: side of the crop from the middle that is judged; None: whole pictures, which
            needs ``eval_batch_size: 1``.
        pairs: folder with ``gt`` and ``lq`` for the test.
        kwargs: see :class:`MapDataModule`.
    """

    layout = "DIV2K_train_HR/*.png and DIV2K_valid_HR/*.png"
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(
        self,
        root: str,
        size: int = 512,
        scales: Sequence[int] = (2, 4),
        degradation: Literal["bicubic", "real_esrgan"] = "bicubic",
        train: Sequence[str] = ("DIV2K_train_HR",),
        eval_size: int | None = 512,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if size % max(scales) or (eval_size or 0) % max(scales):
            raise ZooError(
                f"data.init_args.size is {size}, eval_size {eval_size}: expected multiples of the "
                f"largest scale, {max(scales)}"
            )
        self.size, self.eval_size, self.scales = size, eval_size, tuple(scales)
        self.train, self.pairs = tuple(train), None if pairs is None else Path(pairs).expanduser()
        self.degrade = real_esrgan if degradation == "real_esrgan" else bicubic

    def files(self, split: str) -> list[tuple[Path, Path | None]]:
        """(sharp picture, given small one) of each sample."""
        if split == "test" and self.pairs is not None:
            return list(paired(*(self.existing(self.pairs / name) for name in ("gt", "lq"))))
        folders = self.train if split == "train" else ("DIV2K_valid_HR",)
        paths = [p for name in folders for p in list_pictures(self.existing(self.root / name))]
        return [(path, None) for path in paths]

    def read(self, item: tuple[Path, Path | None]) -> dict[str, Any]:
        """One picture."""
        sharp, given = item
        sample = {"image": read_image(sharp).as_subclass(Tensor)}
        if given is not None:
            sample["given"] = read_image(given).as_subclass(Tensor)
        return sample

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Cut, mirror, turn, degrade."""
        image = sample["image"]
        height, width = image.shape[-2:]
        if min(height, width) < self.size:
            raise ZooError(
                f"a training picture of {height}x{width} pixels, expected {self.size} a side: "
                "lower data.init_args.size, or leave it out"
            )
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in (height, width))
        image = image[:, top : top + self.size, left : left + self.size]
        flip, turn = int(torch.randint(2, ())), int(torch.randint(4, ()))
        image = torch.rot90(image.flip(-1) if flip else image, turn, (-2, -1))
        return self._finish(image)

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Cut the middle, or what the scales divide; degrade, if there is no small picture."""
        image = sample["image"]
        if "given" in sample:
            return self._given(image, sample["given"])
        sides = image.shape[-2:]
        if self.eval_size is None:
            sides = [side // max(self.scales) * max(self.scales) for side in sides]
        else:
            sides = [
                min(self.eval_size, side // max(self.scales) * max(self.scales)) for side in sides
            ]
        top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], sides, strict=True))
        return self._finish(image[:, top : top + sides[0], left : left + sides[1]])

    def _given(self, image: Tensor, low: Tensor) -> dict[str, Tensor]:
        scale = image.shape[-1] // low.shape[-1]
        if scale not in self.scales or [s * scale for s in low.shape[-2:]] != list(
            image.shape[-2:]
        ):
            raise ZooError(
                f"a pair of {tuple(image.shape[-2:])} and {tuple(low.shape[-2:])} pixels, expected "
                f"one of the scales {self.scales}"
            )
        return {"image": self.to_input(image), f"low_{scale}": self.to_input(low)}

    def _finish(self, image: Tensor) -> dict[str, Tensor]:
        small = self.degrade(image / 255, self.scales)
        lows = {f"low_{scale}": self.to_input(picture) for scale, picture in small.items()}
        return {"image": self.to_input(image), **lows}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write crops of scikit-image's pictures; the ``test`` ones are of other pictures."""
        rng = np.random.default_rng(sample.seed)
        for name, sources, count in (
            ("DIV2K_train_HR", LEARNT, sample.train),
            ("DIV2K_valid_HR", JUDGED, max(sample.val, sample.test)),
        ):
            made = crops(rng, sources, count, sample.size, recolour=sources is LEARNT)
            for number, crop in enumerate(made, start=1):
                write_image(folder / name / f"{number:04d}.png", crop)
