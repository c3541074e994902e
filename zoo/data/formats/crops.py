"""Where to cut training pieces out of pictures with labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.losses.segmentation import IGNORE


def crop_place(
    labels: Tensor, sides: Sequence[int], most: float = 0.75, tries: int = 10
) -> tuple[int, int]:
    """A random place, but not one where a class covers ``most`` of the piece, if that can be
    helped (MMSegmentation's ``cat_max_ratio``).

    Args:
        labels: [H, W]; 255 does not count.
        sides: height and width of the piece.
        most: share of the commonest class.
        tries: the last one is taken in any case.

    Returns:
        top and left.
    """
    for _ in range(tries):
        top, left = (
            int(torch.randint(full - side + 1, ()))
            for full, side in zip(labels.shape, sides, strict=True)
        )
        piece = labels[top : top + sides[0], left : left + sides[1]]
        counts = piece[piece != IGNORE].flatten().bincount()
        if len(counts) and counts.max() < most * counts.sum():
            break
    return top, left
