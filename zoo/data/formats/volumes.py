"""NIfTI files: volumes of slices with their place in the patient.

nibabel is imported when a file is read or written: tasks know the endings of such files without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.checkpoints.claims import check_claim
from zoo.data.formats.files import reading
from zoo.errors import ZooError

#: Endings of NIfTI files, lower case.
NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE = "a NIfTI file, [H, W, slices] or [H, W, slices, channels]"
LABELS = "a NIfTI file of labels, [H, W, slices]"


@dataclass
class Volume:
    """A volume on disk; its numbers are read when they are asked for.

    Attributes:
        path: its file.
        shape: (H, W, slices, channels) as they are stored.
        affine: [4, 4], from (row, column, slice) to millimetres.
        header: nibabel's, which :func:`write_volume` hands on.
    """

    path: Path
    shape: tuple[int, int, int, int]
    affine: np.ndarray
    header: Any
    _data: Any

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of voxels in millimetres, along (slice, row, column)."""
        row, column, depth = (float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        return depth, row, column

    def read(self, index: int | None = None) -> np.ndarray:
        """All channels float32 [H, W, slices, C], or of one slice [H, W, C]."""
        shape = self.shape if index is None else (*self.shape[:2], self.shape[3])
        with reading(self.path, IMAGE):
            part = (slice(None), slice(None), slice(None) if index is None else index)
            values = np.asarray(self._data[part[: self._data.ndim]], np.float32)
            return values.reshape(shape)


def open_volume(path: Path, expected: str = IMAGE) -> Volume:
    """Open a NIfTI file.

    Raises:
        ZooError: it is missing, broken, no NIfTI file, has other numbers of axes, or fewer bytes
            than it says.
    """
    import nibabel

    with reading(path, expected):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise ZooError(f"{path} is no NIfTI file, expected {expected}")
        data, dtype = image.dataobj, image.get_data_dtype()
        shape = tuple(int(side) for side in image.shape)
    if dtype.kind not in "biuf":
        raise ZooError(f"{path}: voxels of {dtype}, not numbers, expected {expected}")
    # a fourth axis of time and a fifth of channels both count as channels
    if len(shape) < 2 or len(shape) > 5 or min(shape) < 1:
        raise ZooError(f"{path}: axes of {' x '.join(map(str, shape))}, expected {expected}")
    claimed = math.prod(shape) * dtype.itemsize
    what = f"a volume of {' x '.join(map(str, shape))}"
    stored = path.stat().st_size
    if path.suffix.lower() == ".gz":
        check_claim(path, claimed, what)
    elif claimed + data.offset > stored:
        raise ZooError(f"{path}: {what} of {dtype}, but the file has {stored:,} bytes: it is cut")
    full = (*shape[:3], *[1] * (3 - len(shape[:3])), math.prod(shape[3:]))
    return Volume(path, full, np.array(image.affine), image.header, data)


def read_label_volume(path: Path, index: int | None = None) -> np.ndarray:
    """Whole numbers of a label file, int64 [H, W, slices], or of one slice [H, W].

    Raises:
        ZooError: see :func:`open_volume`; or they are no labels.
    """
    volume = open_volume(path, LABELS)
    values = volume.read(index)
    labels = values[..., 0].round()
    if values.shape[-1] != 1 or not np.isfinite(values).all() or (labels != values[..., 0]).any():
        raise ZooError(f"{path}: other values than whole numbers, expected {LABELS}")
    return labels.astype(np.int64)


def write_volume(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write labels [H, W, slices] as NIfTI, in the place of the volume that they belong to.

    Args:
        path: ending in ``.nii.gz`` or ``.nii``.
        labels: whole numbers from 0 to 65535.
        like: whose affine and header are kept.
    """
    import nibabel

    header = like.header.copy()
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(dtype), like.affine, header), path)


def nifti_stem(path: Path) -> str:
    """A file's name without ``.nii.gz`` or ``.nii``."""
    name = path.name
    return next((name[: -len(s)] for s in NIFTI_SUFFIXES if name.lower().endswith(s)), path.stem)


def dataset_labels(path: Path) -> dict[int, str] | None:
    """Label -> name, from a ``dataset.json`` of the Medical Segmentation Decathlon or of nnU-Net.

    Returns:
        None where there is no such file.

    Raises:
        ZooError: it says nothing of labels.
    """
    if not path.is_file():
        return None
    expected = 'JSON with "labels", such as {"0": "background", "1": "liver"}'
    with reading(path, expected):
        found = json.loads(path.read_text(encoding="utf-8"))["labels"]
        if all(isinstance(value, int) for value in found.values()):  # nnU-Net has it the other way
            found = {number: name for name, number in found.items()}
        return {int(number): str(name) for number, name in sorted(found.items(), key=_number)}


def _number(item: Sequence[Any]) -> int:
    return int(item[0])
