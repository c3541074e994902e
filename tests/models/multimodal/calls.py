"""Inputs of mmMamba that fingerprints name."""

from __future__ import annotations

import torch


def tokens() -> torch.Tensor:
    """Two texts of nine tokens, each with places for the four patches of a tile."""
    text = torch.tensor([[7, 9, 11, 4, 4, 4, 4, 13, 6], [8, 4, 4, 4, 4, 15, 17, 5, 19]])
    return text
