"""Pictures of any size through a network that takes pieces of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoo.errors import ZooError


def tiled(
    network: Callable[[Tensor, int, int], Tensor], image: Tensor, tile: int, overlap: int
) -> Tensor:
    """Apply ``network`` to overlapping tiles and blend the results.

    Args:
        network: tile [B, C, h, w], its top and its left place -> [B, C', h, w].
        image: [B, C, H, W], H and W multiples of what the network wants.
        tile: side of a tile; a smaller side of the picture is taken whole.
        overlap: of neighbouring tiles at least; over it the one fades into the other.

    Returns:
        [B, C', H, W].
    """
    if not 0 <= overlap < tile:
        raise ZooError(f"an overlap of {overlap} pixels, expected 0 to {tile - 1} for such tiles")
    height, width = image.shape[-2:]
    total: Tensor | None = None
    weights = image.new_zeros(1, 1, height, width)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            output = network(image[place], top, left)
            if total is None:
                total = output.new_zeros(*output.shape[:2], height, width)
            weight = _ramp(output.shape[-2], overlap).to(output)[:, None] * _ramp(
                output.shape[-1], overlap
            ).to(output)
            total[place] += output * weight
            weights[place] += weight
    assert total is not None
    return total / weights


def pad_tiles(image: Tensor, stride: int) -> Tensor:
    """[..., H, W] -> the next multiples of ``stride``, mirrored right and below while it lasts."""
    height, width = image.shape[-2:]
    rows, columns = -height % stride, -width % stride
    mode = "reflect" if rows < height and columns < width else "replicate"
    return pad(image, (0, columns, 0, rows), mode=mode)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, in equal steps but for the last, which ends where the picture does."""
    if side <= tile:
        return [0]
    starts = list(range(0, side - tile, tile - overlap))
    return [*starts, side - tile]


def _ramp(side: int, overlap: int) -> Tensor:
    """1 in the middle, falling linearly over the overlap to either end, never 0."""
    place = torch.arange(side) + 0.5
    return (torch.minimum(place, side - place) / (overlap + 1)).clamp(max=1)
