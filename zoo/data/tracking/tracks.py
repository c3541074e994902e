"""Tracks of objects through clips: MOT17, MOT20, DanceTrack, SportsMOT and whatever looks alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.base import DataModule, EpochSampler, SampleKey, SeededDataset, Source
from zoo.data.formats.files import natural_sorted
from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.mot_files import LAYOUT, Clip, read_clip, write_clip
from zoo.data.synthetic.moving_boxes import MOTIONS, make_scene
from zoo.errors import ZooError


@dataclass
class SmallScenes(SmallSample):
    """How many clips to make where there is no data set yet.

    Args:
        train, val, test: clips of each split.
        size: width of the pictures in pixels.
        seed: of the maker.
        frames, objects: of a clip.
        motions: which the clips have in turn: circle, sway, line.
        pictures: write the pictures of so many test clips.
    """

    train: int = 40
    val: int = 3
    test: int = 6
    size: int = 640
    frames: int = 60
    objects: int = 6
    motions: list[str] = field(default_factory=lambda: list(MOTIONS))
    pictures: int = 3


class TrackWindows(Dataset):
    """All stretches of ``interval`` + 2 boxes of tracks; longer gaps count as one step, as the
    authors of DiffMOT and TrackSSM have it.

    A sample: ``condition`` [interval, 8], the boxes but the first, each with its change from the
    one before; ``cur_bbox`` [4], the box after them. All (centre x, centre y, width, height), over
    the size of the picture.

    Args:
        clips: with annotations.
        interval: boxes of the condition.
        jitter: standard deviation of noise on the boxes before, over their width and height.
        seed: of the noise.
    """

    #: Samples until the noise repeats itself.
    NOISES = 4099

    def __init__(
        self, clips: Sequence[Clip], interval: int, jitter: float = 0.0, seed: int = 0
    ) -> None:
        self.interval = interval
        shape = (self.NOISES, interval + 1, 4)
        noise = np.random.default_rng(seed).normal(0, jitter, shape if jitter else (1, 1, 1))
        self.noise = torch.from_numpy(noise).float()
        boxes, starts, count = [np.zeros((0, 4), np.float32)], [], 0
        for clip in clips:
            for track in clip.tracks().values():
                scaled = track[:, 1:] / np.array([clip.width, clip.height] * 2)
                boxes.append(scaled.astype(np.float32))
                starts.append(np.arange(count, count + max(len(track) - interval - 1, 0)))
                count += len(track)
        self.boxes = np.concatenate(boxes)
        self.starts = np.concatenate(starts) if starts else np.zeros(0, int)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: t[0] for name, t in self.__getitems__([SampleKey(0, index)]).items()}

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
        """A whole batch, which the data loader asks for at once."""
        rows = self.starts[[key.sample for key in keys]][:, None] + np.arange(self.interval + 2)
        boxes = torch.from_numpy(self.boxes[rows])  # [B, interval + 2, 4]
        # a sample's noise depends on sample and epoch alone
        noise = self.noise[[(key.sample + 613 * key.epoch) % len(self.noise) for key in keys]]
        history = boxes[:, :-1]
        history = history + noise * history[..., 2:].repeat(1, 1, 2)
        condition = torch.cat([history[:, 1:], history.diff(dim=1)], -1)
        return {"condition": condition, "cur_bbox": boxes[:, -1]}


class MOTChallenge(DataModule):
    """Clips in MOT Challenge's layout.

    Layout: ``<root>/<split>/<clip>/`` with ``gt/gt.txt`` (frame, number, left, top, width, height,
    mark, class, visibility; mark 0 and classes but 1 are left out), ``seqinfo.ini`` and, for
    pictures, ``img1/000001.jpg``. Detections stand in ``det/det.txt`` of the clip (frame, -1, left,
    top, width, height, score), or as DiffMOT publishes them: a file per frame in a folder per clip.

    Training and validation batches are windows of consecutive frames; a test batch is a list of
    :class:`Clip`, one at a time.

    Args:
        root: folder of the data set; ``sample`` makes clips of moving boxes.
        sample: make a small data set of the same layout in ``root`` if there is none.
        train, val, test: folders of the splits below ``root``. Where a data set keeps the truth of
            its test split to itself, "val" is tested.
        clips: shell pattern of the clips, such as ``*-FRCNN`` for MOT17, whose clips come thrice.
        detections: folder below ``root`` with DiffMOT's files, ``<split>/<clip>/*.txt``; null for
            ``det/det.txt``.
        interval: boxes of a training sample.
        jitter: noise on the boxes of a training sample, as a share of their width and height: true
            boxes move more smoothly than detected ones. The authors have none.
        kwargs: see :class:`DataModule`.
    """

    def __init__(
        self,
        root: str,
        sample: SmallScenes | None = None,
        train: str = "train",
        val: str = "val",
        test: str = "val",
        clips: str = "*",
        detections: str | None = None,
        interval: int = 5,
        jitter: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.sample = Path(root).expanduser(), sample
        self.folders = {"train": train, "val": val, "test": test}
        self.clips, self.detections = clips, detections
        self.interval, self.jitter = interval, jitter
        for motion in [] if sample is None else sample.motions:
            if motion not in MOTIONS:
                raise ZooError(
                    f"data.init_args.sample.motions: {motion!r}, expected some of "
                    f"{', '.join(MOTIONS)}"
                )

    def load(self, split: str) -> Source:
        """Windows of a split, or for the test its clips."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        folder = self.root / self.folders[split]
        if not folder.is_dir():
            raise ZooError(
                f"data.init_args.root: {folder} is not a folder, expected {LAYOUT}; set it with "
                "--data.init_args.root FOLDER"
            )
        folders = natural_sorted(path for path in folder.glob(self.clips) if path.is_dir())
        if split == "test":
            return [self._clip(path) for path in folders]
        found = [self._clip(path, detected=False) for path in folders]
        jitter = self.jitter if split == "train" else 0.0
        return TrackWindows(found, self.interval, jitter, self.seed)

    def _clip(self, folder: Path, detected: bool = True) -> Clip:
        if self.detections is None or not detected:
            return read_clip(folder, None, detected)
        return read_clip(folder, self.root / self.detections / folder.parent.name / folder.name)

    def train_transform(self, sample: Any) -> Any:
        """As it is."""
        return sample

    eval_transform = train_transform

    def _loader(self, dataset: SeededDataset, sampler: EpochSampler, batch_size: int) -> DataLoader:
        if isinstance(dataset.source, TrackWindows):  # nothing is random: whole batches at once
            return super()._loader(dataset.source, sampler, batch_size)  # type: ignore[arg-type]
        return super()._loader(dataset, sampler, 1)

    def collate(self, samples: Any) -> Any:
        """Batches and lists of clips are complete."""
        return samples

    def make(self, folder: Path, sample: SmallScenes) -> None:
        """Write clips of moving boxes."""
        rng = np.random.default_rng(sample.seed)
        for split in dict.fromkeys(self.folders.values()):
            kind = next(name for name, value in self.folders.items() if value == split)
            count = sample.test if self.folders["test"] == split else getattr(sample, kind)
            for i in range(count):
                motion = sample.motions[i % len(sample.motions)]
                scene = make_scene(rng, motion, sample.size, sample.frames, sample.objects)
                clip = folder / split / f"{motion}-{i:02d}"
                pictures = self.folders["test"] == split and i < sample.pictures
                write_clip(clip, scene.width, scene.height, scene.boxes, scene.detections(rng))
                for frame in range(sample.frames if pictures else 0):
                    scene.draw(frame).save(clip / "img1" / f"{frame + 1:06d}.jpg", quality=80)
