"""Videos, with depth where there is one: Virtual KITTI 2, and PredNet's copy of KITTI."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from zoo.checkpoints.hdf5 import check_array, member, open_hdf5, read_array
from zoo.data.formats.files import natural_key, natural_sorted, numbered
from zoo.data.formats.labels import read_labels
from zoo.data.formats.maps import MapDataModule, SmallSample, read_image, write_image
from zoo.data.synthetic.lit_scenes import FRONTAL, OBLIQUE, draw_scene, render
from zoo.errors import ZooError


class Video(NamedTuple):
    """A recording.

    Attributes:
        path: its folder or file.
        start, frames: number of its first frame there, and how many follow without a gap.
        labelled: whether its depth may be used.
    """

    path: Path
    start: int
    frames: int
    labelled: bool


class Clip(NamedTuple):
    """``length`` frames of a video from frame ``start`` on."""

    video: Video
    start: int


class VideoDataModule(MapDataModule):
    """Clips of videos.

    Training batches: ``frames`` [B, T, 3, H, W] in 0..1 and ``depth`` [B, T, H, W] in metres, 0
    where it is unknown. In evaluation both have the recordings of one scene in its lightings at
    axis 1, [B, V, T, ...], the lighting of the labelled training videos first.

    Args:
        root: folder of the data set.
        length: frames T of a clip.
        size: (H, W) that frames are resized to; None: as they are.
        hop: frames between the starts of two training clips.
        kwargs: see :class:`MapDataModule`.
    """

    def __init__(
        self,
        root: str,
        length: int = 10,
        size: tuple[int, int] | None = None,
        hop: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.length, self.size, self.hop = length, size, hop

    @abstractmethod
    def videos(self, split: str) -> Iterable[Sequence[Video]]:
        """The recordings of each scene of a split, of equal length, first the usual lighting."""

    @abstractmethod
    def read_clip(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Frames uint8 [T, 3, H, W] and depth [T, H, W]."""

    def files(self, split: str) -> list[list[Clip]]:
        """In training each clip of each recording alone, else those of a scene together."""
        clips: list[list[Clip]] = []
        for scene in self.videos(split):
            starts = range(
                0,
                min(video.frames for video in scene) - self.length + 1,
                self.hop if split == "train" else self.length,
            )
            if split == "train":
                clips += [[Clip(video, start)] for video in scene for start in starts]
            else:
                clips += [[Clip(video, start) for video in scene] for start in starts]
        return clips

    def read(self, item: list[Clip]) -> dict[str, Any]:
        """The clips of a sample."""
        frames, depth = zip(*(self.read_clip(clip) for clip in item), strict=True)
        return {"frames": torch.stack(frames), "depth": torch.stack(depth)}

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """One clip."""
        return {name: value[0] for name, value in self.eval_transform(sample).items()}

    def eval_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Resize."""
        frames, depth = sample["frames"], sample["depth"]
        if self.size is not None and frames.shape[-2:] != self.size:
            frames = resize(frames, list(self.size), antialias=True)
            nearest = v2.InterpolationMode.NEAREST_EXACT
            depth = resize(depth, list(self.size), interpolation=nearest)
        return {"frames": self.to_input(frames), "depth": depth}


class VirtualKITTI(VideoDataModule):
    """Virtual KITTI 2 (Cabon et al. 2020): the same drives in several lightings.

    Layout: ``<scene>/<variation>/frames/rgb/Camera_0/rgb_00000.jpg`` and
    ``.../depth/Camera_0/depth_00000.png``, 16 bit, in centimetres, 655.35 m and more: unknown.
    Frames go by the numbers in their names.

    Args:
        root: folder with the scenes; ``sample`` makes scenes of moving spheres, ``clone`` lit from
            the front, ``sunset`` dimly from the side.
        train, val, test: patterns of the scenes of each split.
        labelled: variations whose depth is used in training.
        unlabelled: variations of which training sees the video alone.
        kwargs: see :class:`VideoDataModule`.
    """

    layout = "Scene*/<variation>/frames/{rgb,depth}/Camera_0/"
    #: Frames of a made video.
    made_frames = 32

    def __init__(
        self,
        root: str,
        train: Sequence[str] = ("Scene0*",),
        val: Sequence[str] = ("Scene1*",),
        test: Sequence[str] = ("Scene2*",),
        labelled: Sequence[str] = ("clone",),
        unlabelled: Sequence[str] = ("fog", "morning", "overcast", "rain", "sunset"),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.scenes = {"train": train, "val": val, "test": test}
        self.labelled, self.unlabelled = tuple(labelled), tuple(unlabelled)
        self._listed: dict[Path, dict[int, Path]] = {}

    def videos(self, split: str) -> Iterable[Sequence[Video]]:
        """The scenes that match the split's patterns, in each variation; cut where frames miss."""
        found = [
            path
            for path in natural_sorted(self.root.iterdir())
            if path.is_dir() and any(fnmatch(path.name, p) for p in self.scenes[split])
        ]
        if not found:
            raise ZooError(
                f"{self.root} holds no scenes named {', '.join(self.scenes[split])} for {split}, "
                f"expected {self.layout}"
            )
        for scene in found:
            names = (*self.labelled, *self.unlabelled)
            shown = [set(self._numbers(scene / name / "frames", "rgb")) for name in names]
            for start, stop in _runs(sorted(set.intersection(*shown))):
                yield [
                    Video(
                        *(scene / name / "frames", start, stop - start),
                        labelled=split != "train" or name in self.labelled,
                    )
                    for name in names
                ]

    def _numbers(self, frames: Path, kind: str) -> dict[int, Path]:
        """Number -> file of a recording, of ``rgb`` or ``depth``."""
        folder = frames / kind / "Camera_0"
        if folder not in self._listed:
            ending = {"rgb": ".jpg", "depth": ".png"}[kind]
            self._listed[folder] = numbered(self.existing(folder).glob(f"*{ending}"))
        return self._listed[folder]

    def read_clip(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Read pictures."""
        path, first = clip.video.path, clip.video.start + clip.start
        numbers = range(first, first + self.length)
        pictures = self._numbers(path, "rgb")
        frames = torch.stack([read_image(pictures[n]).as_subclass(Tensor) for n in numbers])
        if not clip.video.labelled:
            return frames, torch.zeros(len(frames), *frames.shape[-2:])
        maps = self._numbers(path, "depth")
        if missing := [n for n in numbers if n not in maps]:
            raise ZooError(f"{path / 'depth/Camera_0'} lacks frame {missing[0]}, which rgb has")
        depth = np.stack([read_labels(maps[n]) for n in numbers])
        metres = np.where(depth < 65535, depth, 0).astype(np.float32) / 100
        return frames, torch.from_numpy(metres)

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write spheres; ``sample`` counts scenes."""
        rng = np.random.default_rng(sample.seed)
        for digit, split in enumerate(("train", "val", "test")):
            for i in range(getattr(sample, split)):
                scene = draw_scene(rng, self.made_frames)
                for name, lighting in (("clone", FRONTAL), ("sunset", OBLIQUE)):
                    path = folder / f"Scene{digit}{i:03d}" / name / "frames"
                    for n, (frame, depth) in enumerate(
                        zip(*render(scene, lighting, rng, sample.size), strict=True)
                    ):
                        write_image(path / f"rgb/Camera_0/rgb_{n:05d}.jpg", frame)
                        target = path / f"depth/Camera_0/depth_{n:05d}.png"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray((depth * 100).round().astype(np.uint16)).save(target)


class PredNetKITTI(VideoDataModule):
    """KITTI as PredNet's authors packed it: frames without depth.

    Layout: ``X_{train,val,test}.hkl``, one array uint8 [N, H, W, 3], and ``sources_*.hkl``, the
    name of the recording for each frame, both HDF5 as hickle writes them.

    Args:
        root: folder of the files; ``sample`` makes moving spheres.
        kwargs: see :class:`VideoDataModule`.
    """

    layout = "{X,sources}_{train,val,test}.hkl"
    #: Frames of a made video.
    made_frames = 12

    def videos(self, split: str) -> Iterable[Sequence[Video]]:
        """Runs of frames from one recording."""
        path = self.existing(self.root / f"X_{split}.hkl")
        sources = _read_names(self.existing(self.root / f"sources_{split}.hkl"))
        with open_hdf5(path, _PACKED) as file:
            count = len(_content(file))
        if count != len(sources):
            raise ZooError(f"{path} has {count} frames, but {len(sources)} sources are named")
        start = 0
        for end in range(1, count + 1):
            if end == count or sources[end] != sources[start]:
                yield [Video(path, start, end - start, False)]
                start = end

    def read_clip(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Read a slice of the array."""
        first = clip.video.start + clip.start
        with open_hdf5(clip.video.path, _PACKED) as file:
            pixels = read_array(_content(file), slice(first, first + self.length))
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            raise ZooError(
                f"{clip.video.path}: {pixels.dtype} of {pixels.shape}, expected 8-bit frames "
                "[N, H, W, 3]"
            )
        frames = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return frames, torch.zeros(len(frames), *frames.shape[-2:])

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write spheres; ``sample`` counts recordings."""
        rng = np.random.default_rng(sample.seed)
        for split in ("train", "val", "test"):
            count = getattr(sample, split)
            videos = [
                render(draw_scene(rng, self.made_frames), FRONTAL, rng, sample.size)[0]
                for _ in range(count)
            ]
            names = [f"made-{i:04d}" for i in range(count) for _ in range(self.made_frames)]
            pixels = (np.concatenate(videos) * 255).round().astype(np.uint8)
            for name, content in (("X", pixels), ("sources", np.array(names, "S"))):
                with h5py.File(folder / f"{name}_{split}.hkl", "w") as file:
                    file["data_0"] = content


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and one behind the last of each run without a gap."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], numbers[end - 1] + 1
            start = end


_PACKED = "a file that hickle has written"


def _content(file: h5py.File) -> Any:
    """What hickle stored, under the names of its versions to 3 and from 4 on."""
    for name in ("data_0", "data"):
        if file.get(name, getlink=True) is not None:
            return member(file, name)
    raise ZooError(f"{file.filename} holds neither data nor data_0, expected {_PACKED}")


def _read_names(path: Path) -> list[str]:
    """A list of strings; hickle from 4 on stores characters, and references to equal strings."""
    with open_hdf5(path, _PACKED) as file:
        content = _content(file)
        if isinstance(content, h5py.Group):
            places = sorted(content, key=natural_key)
            values = [_value(file, member(content, place)) for place in places]
        else:
            values = list(_value(file, content))
        texts = [v.tobytes() if isinstance(v, np.ndarray | np.generic) else v for v in values]
        return [text.decode() if isinstance(text, bytes) else text for text in texts]


def _value(file: h5py.File, dataset: h5py.Dataset) -> Any:
    check_array(dataset)
    value = dataset[()]
    if isinstance(value, h5py.Reference):
        check_array(file[value])
        value = file[value][()]
    return value
