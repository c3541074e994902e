"""Pictures with maps: what the data sets of dense prediction share.

A stored sample is a dictionary of ``torchvision.tv_tensors`` (pictures and label maps, which the
geometric transforms then treat alike) and plain values; a batch is a dictionary of tensors.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from zoo.atomic import part_of, sweep
from zoo.data.base import DataModule, Source
from zoo.data.formats.pictures import read_picture
from zoo.errors import ZooError


@dataclass
class SmallSample:
    """How many samples to make where there is no data set yet.

    Args:
        train, val, test: samples of each split.
        size: side of a picture in pixels.
        seed: of the maker.
    """

    train: int = 256
    val: int = 32
    test: int = 64
    size: int = 96
    seed: int = 0


class Samples:
    """Samples that are read when they are asked for."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], dict[str, Any]]) -> None:
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(self.items[index])


class MapDataModule(DataModule):
    """A data set on disk, in its published layout.

    Args:
        root: its folder.
        sample: make a small data set of the same layout in ``root`` if there is none; null: never.
        kwargs: see :class:`DataModule`.
    """

    #: What the folder must hold, for messages.
    layout: str
    #: Of the network's input in RGB, pixels in 0..1.
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    def __init__(self, root: str, sample: SmallSample | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.sample = Path(root).expanduser(), sample

    @abstractmethod
    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write a small data set into ``folder``, in the published layout."""

    @abstractmethod
    def files(self, split: str) -> Sequence[Any]:
        """What :meth:`read` needs for each sample of a split."""

    @abstractmethod
    def read(self, item: Any) -> dict[str, Any]:
        """One stored sample."""

    def load(self, split: str) -> Source:
        """The samples of a split; makes the small data set first where that is wanted."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        if not self.root.is_dir():
            raise ZooError(
                f"data.init_args.root: {self.root} is not a folder, expected {self.layout}; set it "
                "with --data.init_args.root FOLDER"
            )
        return Samples(self.files(split), self.read)

    def existing(self, path: Path) -> Path:
        """``path``; :class:`ZooError` if it does not exist."""
        if not path.exists():
            raise ZooError(f"{path} is missing, expected {self.layout}")
        return path

    def input_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Size in which the network sees a picture: ``image_size`` where a data set has one; None:
        its own."""
        side = getattr(self, "image_size", None)
        return None if side is None else (side, side)

    def to_input(self, image: Tensor) -> Tensor:
        """Picture uint8 or 0..1 float [..., 3, H, W] -> the network's input."""
        if not image.is_floating_point():
            image = image / 255
        return torch.stack(
            [
                (image[..., i, :, :] - m) / s
                for i, (m, s) in enumerate(zip(self.mean, self.std, strict=True))
            ],
            -3,
        )

    def to_display(self, image: Tensor) -> np.ndarray:
        """The network's input [3, H, W] -> uint8 [H, W, 3]."""
        image = image.detach().float().cpu()
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((image * std + mean).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()


class Maker(Protocol):
    """What makes a small data set: a data module with this method."""

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write the data set into ``folder``."""


def make_once(maker: Maker, root: Path, sample: SmallSample) -> None:
    """Let ``maker`` write a small data set, unless it is there; whole or not at all.

    Raises:
        ZooError: ``root`` holds one that was made with other settings.
    """
    note = root / "sample.json"
    wanted = {"made_by": type(maker).__name__, **asdict(sample)}
    if root.exists():
        if note.is_file() and json.loads(note.read_text()) != wanted:
            raise ZooError(
                f"data.init_args.root: {root} holds a sample made with other settings "
                f"({note}): remove that folder, or choose another root"
            )
        return
    part = part_of(root)
    part.mkdir(parents=True)
    sweep(root.parent)
    try:
        maker.make(part, sample)
        (part / "sample.json").write_text(json.dumps(wanted))
        part.rename(root)
    except OSError:
        if not note.is_file():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_image(path: Path) -> tv_tensors.Image:
    """Picture file -> uint8 [3, H, W], RGB."""
    return tv_tensors.Image(np.asarray(read_picture(path)).transpose(2, 0, 1).copy())


def is_made(root: Path) -> bool:
    """Whether a folder holds a data set that :func:`make_once` made."""
    return (root / "sample.json").is_file()


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, uint8 or 0..1 floats, [H, W] or [H, W, 3]."""
    if pixels.dtype != np.uint8:
        pixels = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
