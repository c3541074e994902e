"""Medical volumes, slice by slice: Synapse in TransUNet's packing, MSD Brain, ACDC."""

from __future__ import annotations

import json
import logging
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import nibabel
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from typing_extensions import override

from zoo.checkpoints.hdf5 import member, open_hdf5, read_array
from zoo.data.base import SampleKey, SeededDataset
from zoo.data.formats.arrays import read_npz
from zoo.data.formats.files import natural_sorted
from zoo.data.formats.maps import MapDataModule, SmallSample, is_made
from zoo.data.formats.volumes import (
    LABELS,
    NIFTI_SUFFIXES,
    Volume,
    dataset_labels,
    nifti_stem,
    open_volume,
    read_label_volume,
)
from zoo.data.synthetic.line_volumes import LINE_CLASSES, line_volumes
from zoo.errors import ZooError

log = logging.getLogger("zoo")

SYNAPSE_CLASSES = (
    "background",
    "aorta",
    "gallbladder",
    "left kidney",
    "right kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)


class VolumeDataModule(MapDataModule):
    """Axial slices; batches of ``image`` [B, C, S, S], ``mask`` [B, S, S], ``volume`` [B].

    Training slices are mirrored and turned by quarters, or by up to 20 degrees. Validation takes
    the last tenth of the training volumes.

    Classes and their numbers are those of the data: of ``dataset.json`` (Medical Segmentation
    Decathlon, nnU-Net) where there is one.

    Args:
        root: folder of the data set; ``sample`` makes volumes of thin curved lines of three
            brightnesses on noise.
        class_names: other names of the classes, in the order of their numbers.
        image_size: side S to which slices are resized.
        augment: training slices.
        kwargs: see :class:`MapDataModule`.
    """

    def __init__(
        self,
        root: str,
        class_names: Sequence[str] | None = None,
        image_size: int = 224,
        augment: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_size, self.augment = image_size, augment
        self._given_names = class_names
        self._labels: dict[int, str] | None = None
        self._channels: int | None = None
        self._resize = v2.Resize([image_size, image_size], antialias=True)
        self._rotate = v2.RandomRotation(20)

    @property
    def labels(self) -> Mapping[int, str]:
        """Number in the label files -> name of the class."""
        if self._labels is not None:
            return self._labels
        labels = dataset_labels(self.root / "dataset.json")
        there = self.root.is_dir()
        if labels is None and (self.sample if not there else is_made(self.root)):
            labels = dict(enumerate(LINE_CLASSES))
        labels = labels or self.other_labels()
        if self._given_names is not None:
            names = self._given_names
            numbers = labels if len(labels) == len(names) else range(len(names))
            labels = dict(zip(numbers, names, strict=True))
        if there:  # otherwise it may still be made
            self._labels = labels
        return labels

    @property
    def in_chans(self) -> int:
        """Channels of the slices."""
        return 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers."""
        return tuple(self.labels.values())

    @override
    def facts(self) -> dict[str, Any]:
        return {"labels": dict(self.labels), "channels": self.in_chans}

    @override
    def restore(self, facts: Mapping[str, Any]) -> None:
        self._labels, self._channels = dict(facts["labels"]), facts["channels"]

    @abstractmethod
    def other_labels(self) -> dict[int, str]:
        """Number -> class where no ``dataset.json`` says them."""

    @abstractmethod
    def volumes(self, split: str) -> Sequence[Any]:
        """The volumes of ``train`` (with those of the validation) or ``test``."""

    @abstractmethod
    def slices(self, volume: Any, number: int) -> Sequence[Any]:
        """What :meth:`read` needs for each slice of a volume, in order; ``number`` comes last."""

    def files(self, split: str) -> Sequence[Any]:
        """All slices of the volumes of a split."""
        volumes = list(self.volumes("test" if split == "test" else "train"))
        if split != "test":
            held_back = max(1, len(volumes) // 10)
            if len(volumes) <= held_back:
                raise ZooError(
                    f"{self.root} holds {len(volumes)} training volume, expected 2 or more"
                )
            volumes = volumes[:-held_back] if split == "train" else volumes[-held_back:]
        return [s for number, volume in enumerate(volumes) for s in self.slices(volume, number)]

    def _eval_dataloader(self, split: str) -> DataLoader:
        """As for other data, but a process gets whole volumes, which are scored as such."""
        rank, world_size = self._world()
        source = self.source(split)
        self.check_shares(split, len({item[-1] for item in source.items}), "volumes")
        mine = [
            SampleKey(0, i) for i, item in enumerate(source.items) if item[-1] % world_size == rank
        ]
        dataset = SeededDataset(source, self.eval_transform, self.seed)
        return self._loader(dataset, mine, self.eval_batch_size)

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Mirror and turn."""
        if self.augment:
            # TransUNet: half of the slices by quarters and mirrored, a quarter by any angle
            chance = torch.rand(())
            if chance < 0.5:
                turns, axis = int(torch.randint(4, ())), 1 + int(torch.randint(2, ()))
                for name in ("image", "mask"):
                    turned = torch.rot90(sample[name].as_subclass(Tensor), turns, (-2, -1))
                    sample[name] = tv_tensors.wrap(turned.flip(-axis), like=sample[name])
            elif chance < 0.75:
                sample = self._rotate(sample)
        return self.eval_transform(sample)

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Resize."""
        sample = self._resize(sample)
        return {
            "image": sample["image"].as_subclass(Tensor),
            "mask": sample["mask"].as_subclass(Tensor).long(),
            "volume": torch.tensor(sample["volume"]),
        }

    def to_input(self, image: Tensor) -> Tensor:
        """A picture in 0..1 [..., 3, H, W] -> grey, in as many channels as the data have."""
        return image.mean(-3, keepdim=True).expand(*image.shape[:-3], self.in_chans, -1, -1)

    def to_display(self, image: Tensor) -> np.ndarray:
        """First channel -> uint8 [H, W, 3], from its least to its greatest value."""
        grey = image[0].detach().float().cpu().numpy()
        grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6)
        return np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=2)

    def volume_input(self, volume: Volume) -> Tensor:
        """A user's volume -> its slices as the network sees them, [slices, C, S, S].

        Raises:
            ZooError: it has another number of channels than the data.
        """
        if volume.shape[3] != self.in_chans:
            raise ZooError(
                f"{volume.path} has {volume.shape[3]} channels, expected {self.in_chans} as in the "
                "training data"
            )
        slices = self.standardised(volume.read()).transpose(2, 3, 0, 1)
        return self._resize(tv_tensors.Image(slices.astype(np.float32))).as_subclass(Tensor)

    @abstractmethod
    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Values of a volume [H, W, slices, C] in the range of the data."""

    def sample_of(self, image: np.ndarray, mask: np.ndarray, volume: int) -> dict[str, Any]:
        """Channels [C, H, W] and labels [H, W] as a stored sample."""
        numbers = np.array(list(self.labels))
        classes = np.searchsorted(numbers, mask).clip(max=len(numbers) - 1)
        if (strange := mask[numbers[classes] != mask]).size:
            raise ZooError(
                f"{self.root}: label {strange[0]:g}, expected {', '.join(map(str, numbers))}; "
                "set data.init_args.class_names to the names of all classes"
            )
        return {
            "image": tv_tensors.Image(image.astype(np.float32)),
            "mask": tv_tensors.Mask(classes.astype(np.uint8)),
            "volume": volume,
        }


class Synapse(VolumeDataModule):
    """Synapse multi-organ CT in TransUNet's packing: eight organs.

    Layout: ``train_npz/case0005_slice000.npz`` (``image``, ``label``, [H, W]) and
    ``test_vol_h5/case0001.npy.h5`` (the same, [slices, H, W]).

    Args:
        kwargs: see :class:`VolumeDataModule`.
    """

    layout = "train_npz/case*_slice*.npz and test_vol_h5/case*.npy.h5"

    def other_labels(self) -> dict[int, str]:
        """Eight organs and background."""
        return dict(enumerate(SYNAPSE_CLASSES))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Hounsfield units from -125 to 275 -> 0..1, as TransUNet packs them; what is within 0..1
        stays."""
        if values.min() >= 0 and values.max() <= 1:
            return values
        return (values.clip(-125, 275) + 125) / 400

    def volumes(self, split: str) -> Sequence[Any]:
        """Slice files grouped by case, or volume files."""
        if split == "test":
            return natural_sorted(self.existing(self.root / "test_vol_h5").glob("*.h5"))
        cases: dict[str, list[Path]] = {}
        for path in natural_sorted(self.existing(self.root / "train_npz").glob("*.npz")):
            cases.setdefault(path.stem.split("_")[0], []).append(path)
        return list(cases.values())

    def slices(self, volume: Any, number: int) -> Sequence[Any]:
        """(file, slice in it, volume)."""
        if isinstance(volume, list):
            return [(path, None, number) for path in volume]
        with open_hdf5(volume, _VOLUME_FILE) as file:
            return [(volume, i, number) for i in range(len(member(file, "label")))]

    def read(self, item: tuple[Path, int | None, int]) -> dict[str, Any]:
        """One slice."""
        path, index, volume = item
        if index is None:
            image, label = read_npz(path, ("image", "label"), _SLICE_FILE)
        else:
            with open_hdf5(path, _VOLUME_FILE) as file:
                image, label = (read_array(member(file, n), index) for n in ("image", "label"))
        if image.ndim != 2 or image.shape != label.shape:
            raise ZooError(
                f"{path}: an image of {image.shape} and labels of {label.shape}, expected [H, W]"
            )
        return self.sample_of(image[None], label, volume)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write volumes of eight slices with lines."""
        rng = np.random.default_rng(sample.seed)
        (folder / "train_npz").mkdir()
        (folder / "test_vol_h5").mkdir()
        for case, image, label in line_volumes(rng, sample.train + sample.val, sample.size, 5):
            for i in range(len(image)):
                np.savez(
                    folder / "train_npz" / f"case{case:04d}_slice{i:03d}.npz",
                    image=image[i],
                    label=label[i],
                )
        for case, image, label in line_volumes(rng, sample.test, sample.size, 1):
            with h5py.File(folder / "test_vol_h5" / f"case{case:04d}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label


_SLICE_FILE = "an .npz file with image and label, [H, W]"
_VOLUME_FILE = "an HDF5 file with image and label, [slices, H, W]"


class NiftiVolumes(VolumeDataModule):
    """NIfTI files of the Medical Segmentation Decathlon, of nnU-Net, or of ACDC.

    Each slice is standardised over its volume. Layouts: Decathlon ``imagesTr/BRATS_001.nii.gz``
    ([H, W, slices] or [H, W, slices, channels]) with ``labelsTr/BRATS_001.nii.gz``; nnU-Net the
    same with a file for each channel, ``imagesTr/BRATS_001_0000.nii.gz``; ACDC
    ``patient001/patient001_frame01.nii.gz`` with ``..._frame01_gt.nii.gz``, in any depth of
    folders. Every fifth volume is the test; of fewer than five the last one.

    Without ``dataset.json``, classes are called by the numbers found in the label files; ACDC's are
    known.

    Args:
        kind: ``msd`` for the first two layouts.
        kwargs: see :class:`VolumeDataModule`.
    """

    layout = "imagesTr/*.nii.gz and labelsTr/*.nii.gz (MSD), or patient*_frame*_gt.nii.gz (ACDC)"

    def __init__(self, root: str, kind: Literal["msd", "acdc"] = "msd", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.kind = kind
        self._statistics: dict[Path, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def in_chans(self) -> int:
        """Channels of the first volume; where there is none yet, those of the published ones."""
        if self._channels is None:
            if not self.root.is_dir():
                return 4 if self.kind == "msd" else 1
            images = self._pairs()[0][0]
            self._channels = sum(open_volume(path).shape[3] for path in images)
        return self._channels

    def other_labels(self) -> dict[int, str]:
        """ACDC's classes, or the numbers in the label files."""
        if self.kind == "acdc":
            names = "background", "right ventricle", "myocardium", "left ventricle"
            return dict(enumerate(names))
        files = [labels for _, labels in self._pairs()]
        found = sorted({0}.union(*(np.unique(read_label_volume(f)).tolist() for f in files)))
        log.warning(
            "%s has no dataset.json: its classes are the numbers in its %d label files, %s",
            *(self.root, len(files), ", ".join(map(str, found))),
        )
        return {number: "background" if number == 0 else f"label {number}" for number in found}

    def _pairs(self) -> list[tuple[tuple[Path, ...], Path]]:
        """(images, labels) of each volume, in natural order."""
        if self.kind == "msd":
            files = _nifti_files(self.existing(self.root / "labelsTr").iterdir())
            images: dict[str, Path] = {}
            for path in _nifti_files(self.existing(self.root / "imagesTr").iterdir()):
                images[nifti_stem(path)] = path
            pairs = [(_channels(nifti_stem(p), images), p) for p in files]
        else:
            files = _nifti_files(self.root.rglob("patient*_gt.nii*"))
            pairs = [((p.with_name(p.name.replace("_gt", "")),), p) for p in files]
        if not pairs:
            raise ZooError(f"{self.root} holds no label files, expected {self.layout}")
        for found, labels in pairs:
            if not found:
                raise ZooError(f"{self.root / 'imagesTr'} lacks the images of {labels}")
        return pairs

    def volumes(self, split: str) -> Sequence[tuple[tuple[Path, ...], Path]]:
        """(images, labels) of each volume."""
        pairs = self._pairs()
        last = min(4, len(pairs) - 1)
        return [pair for i, pair in enumerate(pairs) if (i % 5 == last) == (split == "test")]

    def slices(self, volume: tuple[tuple[Path, ...], Path], number: int) -> Sequence[Any]:
        """(images, labels, slice, volume)."""
        depth = open_volume(volume[1], LABELS).shape[2]
        return [(*volume, i, number) for i in range(depth)]

    def read(self, item: tuple[tuple[Path, ...], Path, int, int]) -> dict[str, Any]:
        """One slice."""
        images, labels, index, volume = item
        image = np.concatenate([self._slice(path, index) for path in images], axis=2)
        if image.shape[2] != self.in_chans:
            raise ZooError(
                f"{images[0]}: {image.shape[2]} channels, the first volume has {self.in_chans}"
            )
        if (size := open_volume(images[0]).shape[:3]) != open_volume(labels, LABELS).shape[:3]:
            raise ZooError(
                f"{images[0]} has {' x '.join(map(str, size))} voxels, and {labels} others: "
                "expected the same"
            )
        label = read_label_volume(labels, index)
        return self.sample_of(image.transpose(2, 0, 1), label, volume)

    def _slice(self, path: Path, index: int) -> np.ndarray:
        """A standardised slice [H, W, C]; the volume is read whole only once."""
        volume = open_volume(path)
        if path not in self._statistics:
            self._statistics[path] = _mean_and_deviation(volume.read())
        mean, deviation = self._statistics[path]
        return (volume.read(index) - mean) / deviation

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Mean 0 and deviation 1 over the volume, each channel."""
        mean, deviation = _mean_and_deviation(values)
        return (values - mean) / deviation

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write volumes of eight slices with lines."""
        rng = np.random.default_rng(sample.seed)
        count = sample.train + sample.val + sample.test
        # every fifth is the test
        for case, image, label in line_volumes(rng, max(count, 5 * 8), sample.size, 1):
            if self.kind == "msd":
                name = f"BRATS_{case:03d}.nii.gz"
                places = folder / "imagesTr" / name, folder / "labelsTr" / name
            else:
                stem = folder / f"patient{case:03d}" / f"patient{case:03d}_frame01"
                places = Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz")
            image = image.transpose(1, 2, 0)
            if self.kind == "msd":
                image = np.stack([image] * 4, axis=-1)
            for path, array in zip(places, (image, label.transpose(1, 2, 0)), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        if self.kind == "msd":
            labels = {str(number): name for number, name in enumerate(LINE_CLASSES)}
            (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def _mean_and_deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel of [H, W, slices, C], over what is finite in all."""
    return values.mean((0, 1, 2)), values.std((0, 1, 2)) + 1e-6


def _nifti_files(paths: Iterable[Path]) -> list[Path]:
    return [p for p in natural_sorted(paths) if p.name.lower().endswith(NIFTI_SUFFIXES)]


def _channels(stem: str, images: Mapping[str, Path]) -> tuple[Path, ...]:
    """The images of a volume: one file, or nnU-Net's for each channel."""
    if stem in images:
        return (images[stem],)
    return tuple(path for name, path in images.items() if re.fullmatch(stem + r"_\d{4}", name))
