"""Medical volumes, slice by slice: Synapse in TransUNet's packing, MSD Brain, ACDC."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import nibabel
import numpy as np
import torch
from skimage.draw import line
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.data.base import SampleKey, SeededDataset
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import MapDataModule, SmallSample
from zoo.errors import ZooError

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
LINE_CLASSES = ("background", "faint line", "clear line", "bright line")
#: Brightness of the made slices' ground and of their lines' classes, in Synapse's range of 0..1.
GROUND_LEVEL, LINE_LEVELS = 0.25, (0.49, 0.67, 0.85)


class VolumeDataModule(MapDataModule):
    """Axial slices; batches of ``image`` [B, C, S, S], ``mask`` [B, S, S], ``volume`` [B].

    Training slices are mirrored and turned by quarters, or by up to 20 degrees. Validation takes
    the last tenth of the training volumes.

    Args:
        root: folder of the data set; ``sample`` makes volumes of thin curved lines of three
            brightnesses on noise.
        class_names: the label values in order; those of the made lines with ``sample``.
        image_size: side S to which slices are resized.
        augment: training slices.
        kwargs: see :class:`MapDataModule`.
    """

    in_chans: int = 1

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
        made = LINE_CLASSES if self.sample else self.default_classes()
        self.class_names = tuple(class_names or made)
        self._resize = v2.Resize([image_size, image_size], antialias=True)
        self._rotate = v2.RandomRotation(20)

    @abstractmethod
    def default_classes(self) -> Sequence[str]:
        """The data set's classes."""

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

    def sample_of(self, image: np.ndarray, mask: np.ndarray, volume: int) -> dict[str, Any]:
        """Channels [C, H, W] and labels [H, W] as a stored sample."""
        most = int(mask.max())
        if most >= len(self.class_names):
            raise ZooError(
                f"{self.root}: label {most}, expected 0 to {len(self.class_names) - 1}; "
                "set data.init_args.class_names to the names of all classes"
            )
        return {
            "image": tv_tensors.Image(image.astype(np.float32)),
            "mask": tv_tensors.Mask(mask.astype(np.uint8)),
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

    def default_classes(self) -> Sequence[str]:
        """Eight organs and background."""
        return SYNAPSE_CLASSES

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
        with reading(volume, _VOLUME_FILE), h5py.File(volume) as file:
            return [(volume, i, number) for i in range(len(file["label"]))]

    def read(self, item: tuple[Path, int | None, int]) -> dict[str, Any]:
        """One slice."""
        path, index, volume = item
        if index is None:
            with reading(path, _SLICE_FILE), np.load(path) as arrays:
                image, label = arrays["image"], arrays["label"]
        else:
            with reading(path, _VOLUME_FILE), h5py.File(path) as file:
                image, label = file["image"][index], file["label"][index]
        return self.sample_of(image[None], label, volume)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write volumes of eight slices with lines."""
        rng = np.random.default_rng(sample.seed)
        (folder / "train_npz").mkdir()
        (folder / "test_vol_h5").mkdir()
        for case, image, label in _line_volumes(rng, sample.train + sample.val, sample.size, 5):
            for i in range(len(image)):
                np.savez(
                    folder / "train_npz" / f"case{case:04d}_slice{i:03d}.npz",
                    image=image[i],
                    label=label[i],
                )
        for case, image, label in _line_volumes(rng, sample.test, sample.size, 1):
            with h5py.File(folder / "test_vol_h5" / f"case{case:04d}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label


_SLICE_FILE = "an .npz file with image and label, [H, W]"
_VOLUME_FILE = "an HDF5 file with image and label, [slices, H, W]"


class NiftiVolumes(VolumeDataModule):
    """MSD Brain (Task01) or ACDC, NIfTI files; each slice is standardised over its volume.

    Layouts: MSD ``imagesTr/BRATS_001.nii.gz`` ([H, W, slices, 4 modalities]) with
    ``labelsTr/BRATS_001.nii.gz``; ACDC ``patient001/patient001_frame01.nii.gz`` with
    ``..._frame01_gt.nii.gz``, in any depth of folders. Every fifth volume is the test.

    Args:
        kind: which of the two.
        kwargs: see :class:`VolumeDataModule`.
    """

    layout = "imagesTr/*.nii.gz and labelsTr/*.nii.gz (MSD), or patient*_frame*_gt.nii.gz (ACDC)"

    def __init__(self, root: str, kind: Literal["msd", "acdc"] = "msd", **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(root, **kwargs)
        self.in_chans = 4 if kind == "msd" else 1
        self._volume_statistics: dict[Path, tuple[np.ndarray, np.ndarray]] = {}

    def default_classes(self) -> Sequence[str]:
        """Classes of the chosen data set."""
        if self.kind == "msd":
            return "background", "edema", "non-enhancing tumour", "enhancing tumour"
        return "background", "right ventricle", "myocardium", "left ventricle"

    def volumes(self, split: str) -> Sequence[tuple[Path, Path]]:
        """(images, labels) of each volume."""
        if self.kind == "msd":
            folder = self.existing(self.root / "labelsTr")
            labels = sorted(p for p in folder.glob("*.nii.gz") if p.name[0] != ".")
            pairs = [(self.root / "imagesTr" / p.name, p) for p in labels]
        else:
            labels = sorted(self.root.rglob("patient*_gt.nii.gz"))
            pairs = [(p.with_name(p.name.replace("_gt", "")), p) for p in labels]
        return [pair for i, pair in enumerate(pairs) if (i % 5 == 4) == (split == "test")]

    def slices(self, volume: tuple[Path, Path], number: int) -> Sequence[Any]:
        """(images, labels, slice, volume)."""
        with reading(volume[1], _NIFTI_LABELS):
            depth = nibabel.load(volume[1]).shape[2]
        return [(*volume, i, number) for i in range(depth)]

    def read(self, item: tuple[Path, Path, int, int]) -> dict[str, Any]:
        """One slice."""
        images, labels, index, volume = item
        mean, deviation = self._statistics(images)
        with reading(images, _NIFTI_IMAGE):
            image = np.asarray(nibabel.load(images).dataobj[:, :, index], dtype=np.float32)
        image = (np.atleast_3d(image) - mean) / deviation  # [H, W, C]
        with reading(labels, _NIFTI_LABELS):
            label = np.asarray(nibabel.load(labels).dataobj[..., index])
        return self.sample_of(image.transpose(2, 0, 1), label, volume)

    def _statistics(self, images: Path) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each modality of a volume, which is read whole only once."""
        if images not in self._volume_statistics:
            with reading(images, _NIFTI_IMAGE):
                image = np.asarray(nibabel.load(images).dataobj, dtype=np.float32)
            image = image.reshape(*image.shape[:3], -1)
            self._volume_statistics[images] = image.mean((0, 1, 2)), image.std((0, 1, 2)) + 1e-6
        return self._volume_statistics[images]

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write volumes of eight slices with lines."""
        rng = np.random.default_rng(sample.seed)
        count = sample.train + sample.val + sample.test
        # every fifth is the test
        for case, image, label in _line_volumes(rng, max(count, 5 * 8), sample.size, 1):
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


_NIFTI_IMAGE = "a NIfTI file, [H, W, slices] or [H, W, slices, modalities]"
_NIFTI_LABELS = "a NIfTI file of labels, [H, W, slices]"


def _line_volumes(rng: np.random.Generator, slices: int, size: int, first: int):
    """(case, image [8, size, size], label) for as many volumes as ``slices`` need."""
    for case in range(first, first + max(2, -(-slices // 8))):
        pairs = [draw_lines(rng, size) for _ in range(8)]
        image, label = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        yield case, image, label


def draw_lines(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Curved lines, one or two pixels thick, in three brightnesses on noise.

    Returns:
        image [size, size] float32 and labels [size, size] uint8, see :data:`LINE_CLASSES`.
    """
    image = np.full((size, size), GROUND_LEVEL)
    label = np.zeros((size, size), np.uint8)
    for kind in rng.permutation([1, 2, 3, *rng.integers(1, 4, 2)]):
        points = rng.uniform(0.05, 0.95, (3, 2)) * (size - 1)
        t = np.linspace(0, 1, 24)[:, None]
        curve = ((1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]).astype(
            int
        )
        thick = rng.integers(0, 2)
        for (r0, c0), (r1, c1) in pairwise(curve):
            rows, columns = line(r0, c0, r1, c1)
            for shift in range(thick + 1):
                moved = np.minimum(columns + shift, size - 1)
                image[rows, moved] = LINE_LEVELS[kind - 1]
                label[rows, moved] = kind
    noisy = image + rng.normal(0, 0.06, image.shape)
    return noisy.clip(0, 1).astype(np.float32), label
