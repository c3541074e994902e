"""Multi-object tracking: train a motion model on tracks, test the tracker around it on clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.mot_files import (
    TABLE_SUFFIXES,
    Clip,
    clip_of_detections,
    frame_pictures,
    write_tracks,
)
from zoo.data.formats.pictures import read_picture
from zoo.data.tracking.tracks import MOTChallenge
from zoo.errors import ZooError
from zoo.metrics.tracking import paired_iou, tracking_scores
from zoo.models.tracking._byte_track import ByteTracker, Thresholds, fill_gaps
from zoo.models.tracking._motion import KalmanMotion, Motion, TrackSSMMotion
from zoo.plots.tracks import draw_detections, draw_tracks, frame_rows, write_animation
from zoo.tasks._scores import Scores, gather
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN, STRIP, WIDEST = 3, 4, 960


class Tracking(ModelTask):
    """Predict the next box of a track; find tracks in detections.

    Validation measures ``iou``, the overlap of predicted and true next boxes. The test runs the
    tracker over whole clips and measures ``hota``, ``deta``, ``assa``, ``mota``, ``idf1``, ``idsw``
    (:func:`zoo.metrics.tracking.tracking_scores`), and of the motion model alone, led along the
    true tracks, ``iou`` and ``error`` (mean distance of the centres in pixels).

    Args:
        model: name of a motion model.
        motion: what predicts in test and prediction: the model, or a Kalman filter instead.
        thresholds: of the association.
        max_gap: put boxes on the straight line into gaps of tracks that are shorter than this; 0:
            none, tracks are complete as soon as a frame is read.
        args, kwargs: see :class:`ModelTask`.
    """

    monitor = "val/iou"
    monitor_mode = "max"
    data_type, data_has, data_example = MOTChallenge, "tracks", "zoo.data.MOTChallenge"
    input_suffixes = TABLE_SUFFIXES

    def __init__(
        self,
        model: str = "trackssm",
        *args: Any,
        motion: Literal["model", "kalman"] = "model",
        thresholds: Thresholds | None = None,
        max_gap: int = 0,
        **kwargs: Any,
    ) -> None:
        self.motion_name, self.max_gap = motion, max_gap
        self.thresholds = thresholds or Thresholds()
        super().__init__(model, *args, **kwargs)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Of the motion model; the tracker's come from trackeval."""
        return {"iou": MeanMetric(), "loss" if split == "val" else "error": MeanMetric()}

    def check_data(self, data: DataModule) -> None:
        """The model must be able to take the windows."""
        super().check_data(data)
        if data.interval != self.model.interval:
            raise ZooError(
                f"data.init_args.interval is {data.interval}, but the model was made for "
                f"{self.model.interval} boxes: set both to the same"
            )

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The motion model's own."""
        return self.model.loss(batch["condition"], batch["cur_bbox"])

    def evaluate(
        self, batch: dict[str, Tensor] | list[Clip], scores: Scores
    ) -> list[tuple[Clip, np.ndarray]]:
        """Measure predictions of single boxes, or track through clips; returns the tracks."""
        if not isinstance(batch, dict):
            return [self._evaluate_clip(clip, scores) for clip in batch]
        condition, target = batch["condition"], batch["cur_bbox"]
        scores["loss"].update(self.eval_model.loss(condition, target), len(target))
        scores["iou"].update(paired_iou(self.eval_model(condition)[-1], target))
        return []

    def _evaluate_clip(self, clip: Clip, scores: Scores) -> tuple[Clip, np.ndarray]:
        """Track; lead the motion model along the true tracks."""
        if not len(clip.truth):
            raise ZooError(f"{clip.folder} has no gt/gt.txt with pedestrians to compare with")
        predicted, true = follow(self.motion_for(clip.width, clip.height), clip)
        scores["iou"].update(paired_iou(predicted, true))
        scores["error"].update((predicted - true)[:, :2].norm(dim=1))
        return clip, self.track(clip)

    # the tracker

    def motion_for(self, width: int, height: int) -> Motion:
        """The motion model for pictures of a size."""
        if self.motion_name == "kalman":
            return KalmanMotion()
        return TrackSSMMotion(self.eval_model, width, height)

    def track(self, clip: Clip) -> np.ndarray:
        """Run the tracker over a clip; returns (frame, number, left, top, width, height) [N, 6]."""
        tracker = ByteTracker(self.motion_for(clip.width, clip.height), self.thresholds)
        rows = [
            [frame, track.number, *(track.box[:2] - track.box[2:] / 2), *track.box[2:]]
            for frame, detections in enumerate(clip.detections, start=1)
            for track in tracker.update(detections)
        ]
        tracks = np.array(rows, float).reshape(-1, 6)
        return fill_gaps(tracks, max_gap=self.max_gap) if self.max_gap else tracks

    @override
    def keep_examples(self, batch: list[Clip], outputs: list[tuple[Clip, np.ndarray]]) -> None:
        self.shown += outputs  # all: the scores are of all clips together

    def finish_test(self) -> dict[str, Any]:
        """The scores of tracking."""
        parts = gather(self.shown)
        self.shown = sorted(chain.from_iterable(parts), key=lambda pair: pair[0].name)
        clips, tracks = zip(*self.shown, strict=True)
        return {name: float(value) for name, value in tracking_scores(clips, tracks).items()}

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Detections, true tracks and ours in the middle of some clips."""
        rows = []
        for clip, tracks in self.shown[:SHOWN]:
            frame = clip.length // 2 + 1
            panels = {}
            for name in ("detections", "true tracks", "tracks"):
                picture = _frame(clip, frame_pictures(clip.folder), frame)
                if name == "detections":
                    draw_detections(picture, clip.detections[frame - 1], self.thresholds.high)
                else:
                    draw_tracks(picture, clip.truth if name == "true tracks" else tracks, frame)
                panels[f"{clip.name}: {name}"] = picture
            rows.append(panels)
        return {"tracks": frame_rows(rows, "In the middle of test clips")} if rows else {}

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Path]:
        """Detections in MOT Challenge's layout, or folders with one file for each frame as DiffMOT
        has them. Annotations (``gt/gt.txt``) among them are passed over.
        """
        files = super().find_inputs(sources)
        found = dict.fromkeys(
            path.parent if path.stem.isdigit() else path
            for path in files
            if path.parent.name != "gt"
        )
        if not found:
            raise ZooError("no detections: expected a file such as det/det.txt beside the frames")
        return list(found)

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure | None]:
        """Track through a user's clip: the tracks in MOT Challenge's layout, a strip of frames with
        boxes and trails, and an animation, all named as the clip.
        :func:`~zoo.data.formats.mot_files.clip_of_detections` says where frames are found.
        """
        clip = clip_of_detections(source)
        tracks = self.track(clip)
        path = stem.with_name(clip.name)
        write_tracks(Path(f"{path}.txt"), tracks)
        pictures = frame_pictures(clip.folder)
        shown = np.linspace(1, clip.length, STRIP + 2).round().astype(int)[1:-1]
        strip = {f"frame {i}": _drawn(clip, pictures, tracks, i) for i in shown}
        frame_rows([strip], clip.name).savefig(f"{path}.png")
        write_animation(
            Path(f"{path}.webp"),
            (_drawn(clip, pictures, tracks, i) for i in range(1, clip.length + 1)),
            clip.rate,
        )
        numbers = np.unique(tracks[:, 1])
        columns = {
            "frames": clip.length,
            "tracks": len(numbers),
            "frames per track": round(len(tracks) / max(len(numbers), 1), 1),
            "result": f"{clip.name}.txt",
        }
        return columns, None


def follow(motion: Motion, clip: Clip, first: int = 6) -> tuple[Tensor, Tensor]:
    """Lead a motion model along the true tracks of a clip, frame by frame.

    Args:
        motion: to be tried.
        clip: with annotations.
        first: boxes that it sees of a track before its predictions count.

    Returns:
        predicted and true (centre x, centre y, width, height) in pixels [N, 4] each.
    """
    tracks = [track[:, 1:] for track in clip.tracks().values()]
    states = [motion.begin(track[0]) for track in tracks]
    predicted, true = [], []
    for t in range(1, max(len(track) for track in tracks)):
        known = [i for i, track in enumerate(tracks) if len(track) > t]
        expected = motion.predict([states[i] for i in known], [False] * len(known))
        for i, box in zip(known, expected, strict=True):
            motion.correct(states[i], tracks[i][t])
            if t >= first:
                predicted.append(box)
                true.append(tracks[i][t])
    both = np.array([predicted, true]).reshape(2, -1, 4)
    return torch.from_numpy(both[0]).float(), torch.from_numpy(both[1]).float()


def _frame(clip: Clip, pictures: Mapping[int, Path], frame: int) -> Image.Image:
    """A frame, or a blank sheet where there is none."""
    if frame in pictures:
        return read_picture(pictures[frame])
    return Image.new("RGB", (clip.width, clip.height), "white")


def _drawn(clip: Clip, pictures: Mapping[int, Path], tracks: np.ndarray, frame: int) -> Image.Image:
    picture = _frame(clip, pictures, frame)
    draw_tracks(picture, tracks, frame)
    picture.thumbnail((WIDEST, WIDEST))
    return picture
