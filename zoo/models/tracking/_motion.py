"""Motion models of a tracker: TrackSSM, and the Kalman filter that it replaces.

Boxes are (centre x, centre y, width, height) in pixels, float64 [4].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zoo.models.tracking.trackssm import TrackSSM


class Motion(Protocol):
    """What a tracker asks of a motion model; a track's state is the model's own affair."""

    def begin(self, box: np.ndarray) -> Any:
        """State of a track that was seen once."""

    def predict(self, states: Sequence[Any], lost: Sequence[bool]) -> np.ndarray:
        """Move states to the next frame; returns the boxes expected there [N, 4].

        Args:
            states: of N tracks, changed in place.
            lost: which of them were not seen in the last frame.
        """

    def correct(self, state: Any, box: np.ndarray) -> np.ndarray:
        """Take in what was seen, after :meth:`predict` or right after :meth:`begin`.

        Returns:
            the box to report [4].
        """


class TrackSSMMotion:
    """A trained :class:`TrackSSM`, all tracks of a frame in one batch.

    A state is the list of the last boxes, each with its change from the one before. A track that is
    not seen goes on from its own predictions.

    Args:
        model: in evaluation mode.
        width, height: of the picture in pixels.
    """

    def __init__(self, model: TrackSSM, width: int, height: int) -> None:
        self.model, self.width, self.height = model, width, height

    def begin(self, box: np.ndarray) -> deque[np.ndarray]:
        """A history of one box that did not move."""
        return deque([np.concatenate([box, np.zeros(4)])], maxlen=self.model.interval)

    def predict(self, states: Sequence[deque[np.ndarray]], lost: Sequence[bool]) -> np.ndarray:
        """Append the predictions to the histories."""
        if not states:
            return np.zeros((0, 4))
        boxes = self.model.generate([np.stack(state) for state in states], self.width, self.height)
        boxes = boxes * np.array([self.width, self.height] * 2, float)
        for state, box in zip(states, boxes, strict=True):
            state.append(np.concatenate([box, box - state[-1][:4]]))
        return boxes

    def correct(self, state: deque[np.ndarray], box: np.ndarray) -> np.ndarray:
        """Put the seen box into the place of the predicted one."""
        before = state[-2] if len(state) > 1 else state[-1]
        state[-1] = np.concatenate([box, box - before[:4]])
        return box


@dataclass
class Gaussian:
    """Mean [8] and covariance [8, 8] of (x, y, width / height, height) and their speeds."""

    mean: np.ndarray
    covariance: np.ndarray


class KalmanMotion:
    """Constant velocity, as in ByteTrack (arXiv 2110.06864), whose filter is DeepSORT's.

    The standard deviations are shares of the box's height: 1/20 of a position, 1/160 of a speed.
    """

    POSITION, SPEED = 1 / 20, 1 / 160
    #: Of the aspect ratio and its speed; of a measured aspect ratio.
    ASPECT, ASPECT_SPEED, ASPECT_MEASURED = 1e-2, 1e-5, 1e-1

    def __init__(self) -> None:
        self.step = np.eye(8) + np.eye(8, k=4)

    def begin(self, box: np.ndarray) -> Gaussian:
        """A box at rest, with a speed that is hardly known."""
        return Gaussian(
            np.concatenate([_to_aspect(box), np.zeros(4)]), np.diag(self._noise(box[3], 2, 10))
        )

    def predict(self, states: Sequence[Gaussian], lost: Sequence[bool]) -> np.ndarray:
        """Move all by their speeds; what is lost keeps its height."""
        boxes = np.zeros((len(states), 4))
        for i, state in enumerate(states):
            if lost[i]:
                state.mean[7] = 0
            noise = np.diag(self._noise(state.mean[3], 1, 1))
            state.mean = self.step @ state.mean
            state.covariance = self.step @ state.covariance @ self.step.T + noise
            boxes[i] = _from_aspect(state.mean)
        return boxes

    def correct(self, state: Gaussian, box: np.ndarray) -> np.ndarray:
        """Weigh what was seen against what was expected."""
        deviation = np.full(4, self.POSITION * state.mean[3])
        deviation[2] = self.ASPECT_MEASURED
        spread = state.covariance[:4, :4] + np.diag(deviation**2)
        gain = np.linalg.solve(spread, state.covariance[:4]).T  # [8, 4]
        state.mean = state.mean + gain @ (_to_aspect(box) - state.mean[:4])
        state.covariance = state.covariance - gain @ spread @ gain.T
        return _from_aspect(state.mean)

    def _noise(self, height: float, position: float, speed: float) -> np.ndarray:
        """Variances [8] for a box of that height; the factors leave the aspect ratio alone."""
        deviation = np.repeat([position * self.POSITION, speed * self.SPEED], 4) * height
        deviation[2], deviation[6] = self.ASPECT, self.ASPECT_SPEED
        return deviation**2


def _to_aspect(box: np.ndarray) -> np.ndarray:
    return np.array([box[0], box[1], box[2] / box[3], box[3]])


def _from_aspect(mean: np.ndarray) -> np.ndarray:
    return np.array([mean[0], mean[1], mean[2] * mean[3], mean[3]])
