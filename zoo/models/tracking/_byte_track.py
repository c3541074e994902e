"""The tracker around TrackSSM: ByteTrack's association with any motion model.

ByteTrack (Zhang et al. 2021, arXiv 2110.06864) as TrackSSM's authors have it: boxes overlap or not,
nothing of how they look. Tracks were compared with their code's on random scenes: the same boxes
under the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from zoo.models.tracking._motion import Motion


@dataclass
class Thresholds:
    """When a detection counts, and when it belongs to a track.

    Args:
        high: score above which detections are sure; those below come second.
        low: score above which the others count.
        new: score from which a sure detection begins a track.
        first, second, unconfirmed: largest 1 - IoU of a match of sure detections with tracks, of
            unsure ones with tracks that were just seen, of sure ones with tracks seen only once.
        duplicate: 1 - IoU below which a lost and a seen track are one.
        max_lost: frames after which a lost track is given up.
    """

    high: float = 0.6
    low: float = 0.1
    new: float = 0.7
    first: float = 0.8
    second: float = 0.5
    unconfirmed: float = 0.7
    duplicate: float = 0.15
    max_lost: int = 30


@dataclass(eq=False)
class Track:
    """A tracked object; ``box`` is (centre x, centre y, width, height) in pixels."""

    number: int
    box: np.ndarray
    state: Any
    first_frame: int
    last_frame: int
    confirmed: bool
    lost: bool = False


@dataclass
class ByteTracker:
    """Tracks through one sequence, frame by frame.

    Args:
        motion: predicts where the tracks are in the next frame.
        thresholds: see :class:`Thresholds`.
    """

    motion: Motion
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        self.frame = self.count = 0
        self.seen: list[Track] = []
        self.lost: list[Track] = []
        self._given_up: set[int] = set()

    def update(self, detections: np.ndarray) -> list[Track]:
        """Go on by one frame.

        Args:
            detections: (left, top, width, height, score) in pixels [M, 5].

        Returns:
            the tracks that are seen in this frame.
        """
        self.frame += 1
        limits = self.thresholds
        scores = detections[:, 4]
        boxes = detections[:, :4].astype(float)
        boxes[:, :2] += boxes[:, 2:] / 2
        sure = np.flatnonzero(scores > limits.high)
        unsure = np.flatnonzero((scores > limits.low) & (scores < limits.high))

        known = [track for track in self.seen if track.confirmed]
        fresh = [track for track in self.seen if not track.confirmed]
        pool = known + self.lost
        expected = self.motion.predict([t.state for t in pool], [t.lost for t in pool])
        for track, box in zip(pool, expected, strict=True):
            track.box = box

        missed, sure = self._match(pool, boxes, sure, limits.first)
        missed, _ = self._match([t for t in missed if not t.lost], boxes, unsure, limits.second)
        _, sure = self._match(fresh, boxes, sure, limits.unconfirmed)
        begun = [self._begin(boxes[i]) for i in sure if scores[i] >= limits.new]

        for track in missed:
            track.lost = True
        given_up = {t.number for t in self.lost if self.frame - t.last_frame > limits.max_lost}
        stayed = [track for track in self.seen if track.confirmed and not track.lost]
        back = [track for track in self.lost if not track.lost]
        self.seen = stayed + begun + back
        self.lost = [t for t in [*self.lost, *missed] if t.lost and t.number not in self._given_up]
        # As in the authors' code, what is given up stays in the pool for one frame more, and one
        # that comes back in it is dropped the next time it is lost.
        self._given_up |= given_up
        self._drop_duplicates()
        return [track for track in self.seen if track.confirmed]

    def _match(
        self, tracks: Sequence[Track], boxes: np.ndarray, candidates: np.ndarray, limit: float
    ) -> tuple[list[Track], np.ndarray]:
        """Give candidates (numbers of detections) to tracks; returns who is left on both sides."""
        cost = 1 - overlaps(_boxes(tracks), boxes[candidates])
        rows, columns = assign(cost, limit)
        for row, column in zip(rows, columns, strict=True):
            track = tracks[row]
            track.box = self.motion.correct(track.state, boxes[candidates[column]])
            track.last_frame, track.confirmed, track.lost = self.frame, True, False
        left = set(range(len(tracks))) - set(rows.tolist())
        return [tracks[i] for i in sorted(left)], np.delete(candidates, columns)

    def _begin(self, box: np.ndarray) -> Track:
        self.count += 1
        state = self.motion.begin(box)
        return Track(self.count, box, state, self.frame, self.frame, confirmed=self.frame == 1)

    def _drop_duplicates(self) -> None:
        """Of a seen and a lost track in one place, the younger goes."""
        distance = 1 - overlaps(_boxes(self.seen), _boxes(self.lost))
        rows, columns = np.nonzero(distance < self.thresholds.duplicate)
        gone = set()
        for row, column in zip(rows, columns, strict=True):
            pair = self.seen[row], self.lost[column]
            ages = [track.last_frame - track.first_frame for track in pair]
            gone.add(pair[1] if ages[0] > ages[1] else pair[0])
        self.seen = [track for track in self.seen if track not in gone]
        self.lost = [track for track in self.lost if track not in gone]


def _boxes(tracks: Sequence[Track]) -> np.ndarray:
    return np.array([track.box for track in tracks]).reshape(-1, 4)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes [N, 4] and [M, 4] as the authors' library counts it: a side has one pixel more.

    Returns:
        [N, M].
    """
    a, b = a[:, None], b[None]
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    shared = (high - low + 1).clip(0).prod(-1)
    return shared / ((a[..., 2:] + 1).prod(-1) + (b[..., 2:] + 1).prod(-1) - shared)


def assign(cost: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Match rows and columns one to one where leaving out a pair costs ``limit``.

    That is the Jonker-Volgenant solver with a cost limit: not the cheapest full matching with its
    dear pairs taken out, but the matching whose cost, pairs left out included, is the lowest.

    Returns:
        matched rows in order, and their columns.
    """
    rows, columns = cost.shape
    # a row or a column alone costs half the limit, and what stands for nobody is free
    padded = np.full((rows + columns, rows + columns), limit / 2)
    padded[:rows, :columns] = cost
    padded[rows:, columns:] = 0
    row, column = linear_sum_assignment(padded)
    matched = (row < rows) & (column < columns)
    return row[matched], column[matched]


def fill_gaps(rows: np.ndarray, min_length: int = 25, max_gap: int = 20) -> np.ndarray:
    """Put boxes on the straight line into the gaps of tracks, as the authors' offline step does.

    Args:
        rows: (frame, number, left, top, width, height) [N, 6].
        min_length: frames that a track must have more than.
        max_gap: frames from box to box that the gap must have less than.

    Returns:
        [N + filled, 6] in the order of the frames.
    """
    parts = [rows]
    for number in np.unique(rows[:, 1]):
        track = rows[rows[:, 1] == number]
        if len(track) <= min_length:
            continue
        for before, after in pairwise(track):
            gap = int(after[0] - before[0])
            if 1 < gap < max_gap:
                share = np.arange(1, gap)[:, None] / gap
                parts.append(before + share * (after - before))
    rows = np.concatenate(parts)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]
