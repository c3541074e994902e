"""Multi-object tracking: train a motion model on tracks, test the tracker around it on clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric

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
from zoo.tasks.base import Task, build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN, STRIP, WIDEST = 3, 4, 960


class Tracking(Task):
    """Predict the next box of a track; find tracks in detections.

    Validation measures ``iou``, the overlap of predicted and true next boxes. The test runs the
    tracker over whole clips and measures ``hota``, ``deta``, ``assa``, ``mota``, ``idf1``, ``idsw``
    (:func:`zoo.metrics.tracking.tracking_scores`), and of the motion model alone, led along the
    true tracks, ``iou`` and ``error`` (mean distance of the centres in pixels).

    Args:
        model: name of a motion model.
        model_args: arguments of the model beyond its published ones.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        motion: what predicts in test and prediction: the model, or a Kalman filter instead.
        thresholds: of the association.
        max_gap: put boxes on the straight line into gaps of tracks that are shorter than this; 0:
            none, tracks are complete as soon as a frame is read.
        kwargs: see :class:`Task`.
    """

    monitor = "val/iou"
    monitor_mode = "max"
    input_suffixes = TABLE_SUFFIXES

    def __init__(
        self,
        model: str = "trackssm",
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        motion: Literal["model", "kalman"] = "model",
        thresholds: Thresholds | None = None,
        max_gap: int = 0,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained = pretrained
        self.motion_name, self.max_gap = motion, max_gap
        self.thresholds = thresholds or Thresholds()
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the motion model, with the given weights."""
        self.model = build_model(self.model_name, self.model_args, self.pretrained)

    def configure_losses(self) -> None:
        """The model's own."""

    def configure_metrics(self) -> None:
        """Of the motion model; the tracker's come from trackeval."""
        self.eval_loss, self.eval_iou, self.eval_error = MeanMetric(), MeanMetric(), MeanMetric()
        self._tracked: list[tuple[Clip, np.ndarray]] = []

    def check_data(self, data: DataModule) -> None:
        """The data must be tracks, in windows that the model can take."""
        if not isinstance(data, MOTChallenge):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no tracks, expected a class such as "
                "zoo.data.tracking.tracks.MOTChallenge"
            )
        if data.interval != self.model.interval:
            raise ZooError(
                f"data.init_args.interval is {data.interval}, but the model was made for "
                f"{self.model.interval} boxes: set both to the same"
            )

    # the motion model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The model's loss of one batch."""
        loss = self.model.loss(batch["condition"], batch["cur_bbox"])
        return self.log_loss(loss, len(batch["condition"]))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure the predictions for one batch."""
        condition, target = batch["condition"], batch["cur_bbox"]
        self.eval_loss.update(self.eval_model.loss(condition, target), len(target))
        self.eval_iou.update(paired_iou(self.eval_model(condition)[-1], target))

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self.log("val/loss", self.eval_loss.compute())
        self.log("val/iou", self.eval_iou.compute(), prog_bar=True)
        self.eval_loss.reset()
        self.eval_iou.reset()

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

    def on_test_epoch_start(self) -> None:
        """Forget the tracks of an earlier test."""
        self._tracked = []

    def test_step(self, batch: list[Clip], batch_idx: int) -> None:
        """Track through clips; measure the motion model on their true tracks."""
        for clip in batch:
            if not len(clip.truth):
                raise ZooError(f"{clip.folder} has no gt/gt.txt with pedestrians to compare with")
            self._tracked.append((clip, self.track(clip)))
            predicted, true = follow(self.motion_for(clip.width, clip.height), clip)
            self.eval_iou.update(paired_iou(predicted, true))
            self.eval_error.update((predicted - true)[:, :2].norm(dim=1))

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self._tracked = self._of_all_processes(self._tracked)
        clips, tracks = zip(*self._tracked, strict=True)
        scores = tracking_scores(clips, tracks)
        scores |= {"iou": self.eval_iou.compute(), "error": self.eval_error.compute()}
        self.log_dict({f"test/{name}": float(value) for name, value in scores.items()})
        self.eval_iou.reset()
        self.eval_error.reset()

    def _of_all_processes(self, mine: list[tuple[Clip, np.ndarray]]) -> list:
        if self.trainer.world_size == 1:
            return mine
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
        return sorted((pair for part in parts for pair in part), key=lambda pair: pair[0].name)

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Detections, true tracks and ours in the middle of some clips."""
        rows = []
        for clip, tracks in self._tracked[:SHOWN]:
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

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Track through a user's clips.

        Args:
            files: detections in MOT Challenge's layout, or one file for each frame as DiffMOT has
                them; :func:`~zoo.data.formats.mot_files.clip_of_detections` says where frames
                are found. Annotations (``gt/gt.txt``) among them are passed over.
            data: not needed.
            folder: takes, for each clip, the tracks in MOT Challenge's layout, a strip of frames
                with boxes and trails, and an animation.
        """
        self.eval()
        sources = dict.fromkeys(
            path.parent if path.stem.isdigit() else path
            for path in files
            if path.parent.name != "gt"
        )
        if not sources:
            raise ZooError("no detections: expected a file such as det/det.txt beside the frames")
        rows = []
        for source in sources:
            clip = clip_of_detections(source)
            tracks = self.track(clip)
            write_tracks(folder / f"{clip.name}.txt", tracks)
            pictures = frame_pictures(clip.folder)
            shown = np.linspace(1, clip.length, STRIP + 2).round().astype(int)[1:-1]
            strip = {f"frame {i}": _drawn(clip, pictures, tracks, i) for i in shown}
            frame_rows([strip], clip.name).savefig(folder / f"{clip.name}.png")
            write_animation(
                folder / f"{clip.name}.webp",
                (_drawn(clip, pictures, tracks, i) for i in range(1, clip.length + 1)),
                clip.rate,
            )
            numbers = np.unique(tracks[:, 1])
            rows.append(
                {
                    "file": str(source),
                    "frames": clip.length,
                    "tracks": len(numbers),
                    "frames per track": round(len(tracks) / max(len(numbers), 1), 1),
                    "result": f"{clip.name}.txt",
                }
            )
        return rows


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
