"""Chest X-rays with a class each: COVIDx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.data.base import Source
from zoo.data.formats.labels import read_mask
from zoo.data.formats.maps import SmallSample, make_once, write_image
from zoo.data.formats.pictures import read_picture
from zoo.data.synthetic.xrays import draw_xray
from zoo.data.vision.images import ImageDataModule
from zoo.errors import ZooError


class COVIDx(ImageDataModule):
    """COVIDx for two classes, or another set in its layout.

    Layout: ``labels/train_COVIDx9B.txt`` and ``labels/test_COVIDx8B.txt`` (any ``train*.txt`` and
    ``test*.txt``) with lines ``patient file class source``, pictures in ``data/train`` and
    ``data/test``, and, if the body is to learn lungs, ``masks/train`` with a mask under each
    picture's name, white: lung. Every tenth training patient is for validation. Training samples
    are (image, class) or, with masks, (image, class, mask [1, S, S]).

    Training pictures are rotated, shifted, zoomed, mirrored and change their brightness; classifier
    and body see the same one. (The authors' script changes the classifier's picture alone, so that
    the two no longer cover each other.)

    Args:
        root: folder of the data set; ``sample`` makes outlines of two lungs and bright spots: the
            class is positive if a spot lies inside a lung.
        sample: see :class:`zoo.data.formats.maps.MapDataModule`.
        balance: repeat the samples of the rarer class, so that half of an epoch is positive.
        augment: change training pictures.
        kwargs: see :class:`ImageDataModule`.
    """

    class_names = ("negative", "positive")
    _LAYOUT = "labels/train*.txt, labels/test*.txt, data/train and data/test"

    def __init__(
        self,
        root: str,
        sample: SmallSample | None = None,
        balance: bool = True,
        augment: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **kwargs)
        self.root, self.sample = Path(root).expanduser(), sample
        self.balance = balance
        self._resize = v2.Resize([self.image_size, self.image_size], antialias=True)
        changes = [
            v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.85, 1.15)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.1),
        ]
        self._augment = v2.Compose([self._resize, *(changes if augment else [])])

    def load(self, split: str) -> Source:
        """The lines of a list."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        folder = "test" if split == "test" else "train"
        lists = sorted((self.root / "labels").glob(f"{folder}*.txt"))
        if len(lists) != 1:
            raise ZooError(
                f"data.init_args.root: {self.root / 'labels'} holds {len(lists)} lists "
                f"{folder}*.txt, expected one; the layout is {self._LAYOUT}"
            )
        rows = [self._row(line, lists[0]) for line in lists[0].read_text().splitlines() if line]
        if folder == "train":
            held_back = set(sorted({patient for patient, *_ in rows})[9::10])
            rows = [row for row in rows if (row[0] in held_back) == (split == "val")]
        items = [(self.root / "data" / folder / name, label) for _, name, label in rows]
        if split == "train" and self.balance:
            items = _balanced(items)
        return _Pictures(items)

    def _row(self, line: str, path: Path) -> tuple[str, str, int]:
        """A line's patient, file and class."""
        fields = line.split()
        if len(fields) < 3 or fields[2] not in self.class_names:
            raise ZooError(
                f"{path}: the line {line[:80]!r}, expected patient, file and "
                f"{' or '.join(self.class_names)}"
            )
        return fields[0], fields[1], self.class_names.index(fields[2])

    def train_transform(self, sample: tuple[Image.Image, int, Path]) -> tuple[Any, ...]:
        """Change picture and mask alike."""
        picture, label, path = sample
        masks = self.root / "masks" / "train"
        if not masks.is_dir():
            return self._augment(v2.functional.pil_to_tensor(picture)) / 255, label
        mask = tv_tensors.Mask(read_mask(masks / path.name)[None] == 1)
        image, mask = self._augment(tv_tensors.Image(picture), mask)
        return image.as_subclass(Tensor) / 255, label, mask.as_subclass(Tensor).float()

    def eval_transform(self, sample: tuple[Any, ...]) -> tuple[Tensor, int]:
        """Resize the whole picture: nothing is cut off."""
        picture, label, *_ = sample
        return self._resize(v2.functional.pil_to_tensor(picture)) / 255, label

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write X-rays of ellipses."""
        rng = np.random.default_rng(sample.seed)
        (folder / "labels").mkdir()
        for split, count in (("train", sample.train + sample.val), ("test", sample.test)):
            lines = []
            for i in range(count):
                image, lungs, positive = draw_xray(rng, sample.size)
                name = f"{split}{i:05d}.png"
                write_image(folder / "data" / split / name, image)
                write_image(folder / "masks" / split / name, lungs.astype(np.uint8) * 255)
                lines.append(f"{i} {name} {self.class_names[positive]} made\n")
            (folder / "labels" / f"{split}_made.txt").write_text("".join(lines))


class _Pictures:
    """Pictures with class and path, read when they are asked for."""

    def __init__(self, items: list[tuple[Path, int]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int, Path]:
        path, label = self.items[index]
        return read_picture(path), label, path


def _balanced(items: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    classes = [[item for item in items if item[1] == label] for label in (0, 1)]
    most = max(map(len, classes))
    return [members[i % len(members)] for members in classes if members for i in range(most)]
