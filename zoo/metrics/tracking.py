"""Scores of trackers by the field's own implementation, the package trackeval."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.formats.mot_files import Clip, write_annotations, write_tracks
from zoo.errors import ZooError


def tracking_scores(clips: Sequence[Clip], tracks: Sequence[np.ndarray]) -> dict[str, float]:
    """HOTA, CLEAR and identity scores over all clips together, as MOT Challenge reports them.

    As there, what is matched to a distractor (a reflection, a person on a bicycle) is left out.

    Args:
        clips: with annotations.
        tracks: of each clip, (frame, number, left, top, width, height) [N, 6].

    Returns:
        shares ``hota``, ``deta``, ``assa``, ``mota``, ``idf1``, and the number of identity switches
        ``idsw``. HOTA, DetA and AssA are means over IoU thresholds of 0.05 to 0.95.

    Raises:
        ZooError: trackeval is not installed, or cannot read a file.
    """
    trackeval = _import_trackeval()
    metrics = [trackeval.metrics.HOTA()]
    quiet = {"PRINT_CONFIG": False}
    metrics += [trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet)]
    with tempfile.TemporaryDirectory() as folder:
        for clip, rows in zip(clips, tracks, strict=True):
            write_tracks(Path(folder, "trackers", "ours", f"{clip.name}.txt"), rows)
            write_annotations(Path(folder, "truth", clip.name, "gt", "gt.txt"), clip.annotations)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                data = trackeval.datasets.MotChallenge2DBox(
                    {
                        "GT_FOLDER": str(Path(folder, "truth")),
                        "TRACKERS_FOLDER": str(Path(folder, "trackers")),
                        "TRACKERS_TO_EVAL": ["ours"],
                        "TRACKER_SUB_FOLDER": "",
                        "SEQ_INFO": {clip.name: clip.length for clip in clips},
                        "SKIP_SPLIT_FOL": True,
                        **quiet,
                    }
                )
                scores = [_combined(metric, data, clips) for metric in metrics]
        except trackeval.utils.TrackEvalException as error:
            raise ZooError(f"trackeval cannot score the tracks: {error}") from error
    hota, clear, identity = scores
    means = {name.lower(): float(np.mean(hota[name])) for name in ("HOTA", "DetA", "AssA")}
    return means | {
        "mota": float(clear["MOTA"]),
        "idf1": float(identity["IDF1"]),
        "idsw": float(clear["IDSW"]),
    }


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of ``a`` with the one of ``b``, (centre x, centre y, width, height) [N, 4].

    Returns:
        [N].
    """
    low, high = (
        edge(a[:, :2] + sign * a[:, 2:] / 2, b[:, :2] + sign * b[:, 2:] / 2)
        for edge, sign in ((torch.maximum, -1), (torch.minimum, 1))
    )
    shared = (high - low).clamp(min=0).prod(1)
    return shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)


def _combined(metric: Any, data: Any, clips: Sequence[Clip]) -> dict[str, Any]:
    per_clip = {
        clip.name: metric.eval_sequence(
            data.get_preprocessed_seq_data(data.get_raw_seq_data("ours", clip.name), "pedestrian")
        )
        for clip in clips
    }
    return metric.combine_sequences(per_clip)


def _import_trackeval() -> Any:
    try:
        import trackeval
    except ImportError as error:
        raise ZooError(
            f"the package trackeval, which scores trackers, cannot be imported ({error}): "
            "pip install 'ssm-zoo[tracking]'"
        ) from error
    return trackeval
