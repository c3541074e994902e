"""Calls of motion models that fingerprints name."""

from __future__ import annotations

import torch

from tests.formula import uniform
from zoo.models.tracking.trackssm import TrackSSM


def generated(model: TrackSSM, lengths: torch.Tensor) -> torch.Tensor:
    """The next boxes of tracks of these lengths in a picture of 640 x 360 pixels."""
    histories = [(uniform(f"history of {n}", (n, 8)) * 90 + 120).numpy() for n in lengths.tolist()]
    return torch.from_numpy(model.generate(histories, 640, 360))
