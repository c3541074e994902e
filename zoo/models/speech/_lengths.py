"""Sequences of different lengths in one batch ``[B, T, ...]``, the padding at their ends."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Bool [B, size], True at the first ``lengths`` [B] places of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def reverse_within(x: Tensor, lengths: Tensor) -> Tensor:
    """Turn each sequence of [B, T, C] round and leave the padding where it is; its own inverse."""
    place = torch.arange(x.shape[1], device=x.device)
    index = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return x.gather(1, index[..., None].expand_as(x))


def align_right(x: Tensor, lengths: Tensor) -> Tensor:
    """Move each sequence of [B, T, C] to the end of its row, the padding before it."""
    size = x.shape[1]
    place = torch.arange(size, device=x.device)
    index = (place - (size - lengths[:, None])) % size
    return x.gather(1, index[..., None].expand_as(x))
