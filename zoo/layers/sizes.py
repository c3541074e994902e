"""Image sizes that a network can take, and pictures of any other size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoo.errors import ZooError


def check_multiple(image: Tensor, stride: int) -> None:
    """Raise :class:`ZooError` unless H and W of [..., H, W] are multiples of ``stride``."""
    height, width = image.shape[-2:]
    if height % stride or width % stride:
        raise ZooError(
            f"an image of {height}x{width} pixels: expected multiples of {stride}, pad it first "
            "(zoo.layers.sizes.pad_to_multiple)"
        )


def pad_to_multiple(image: Tensor, stride: int, least: int = 1) -> Tensor:
    """[..., H, W] -> the next multiples of ``stride`` from ``least`` on; edges repeated right and
    below."""
    height, width = (max(side, least) for side in image.shape[-2:])
    right = width + -width % stride - image.shape[-1]
    below = height + -height % stride - image.shape[-2]
    return pad(image, (0, right, 0, below), mode="replicate")


def at_any_size(
    network: Callable[[Tensor], Any],
    image: Tensor,
    stride: int = 1,
    tile: int | None = None,
    overlap: int = 128,
    least: int = 1,
) -> Any:
    """What a network that wants multiples of ``stride`` says of a picture of any size.

    A picture is padded. One with a side above ``tile`` is cut into tiles that overlap; where they
    do, their answers are blended, each with a weight that falls towards the tile's border.

    Args:
        network: [B, C, h, w] -> maps [B, C', s h, s w] for any s, or a tuple or dictionary of maps
            and Nones.
        image: [B, C, H, W].
        tile: greatest side that the network gets, rounded down to a multiple of ``stride``; None:
            no limit.
        overlap: of tiles, in pixels, rounded up to a multiple of ``stride``.
        least: smallest side that the network can take.

    Returns:
        what the network returns, of the size that belongs to the picture without its padding.
    """
    height, width = image.shape[-2:]
    image = pad_to_multiple(image, stride, least)
    rows, columns = image.shape[-2:]

    def crop(maps: Tensor) -> Tensor:
        kept = -(-height * maps.shape[-2] // rows), -(-width * maps.shape[-1] // columns)
        return maps[..., : kept[0], : kept[1]]

    side = max(rows, columns) if tile is None else max(tile // stride, 2) * stride
    if max(rows, columns) <= side:
        return _map(crop, network(image))
    overlap = min(-(-overlap // stride) * stride, side - stride)
    sums = None
    for top in _starts(rows, side, side - overlap):
        for left in _starts(columns, side, side - overlap):
            part = image[..., top : top + side, left : left + side]
            place = _Place((top, left), (*part.shape[-2:],), (rows, columns), overlap)
            answer = network(part)
            if sums is None:
                sums = _map(place.canvas, answer)
            _map(place.add, sums, answer)
    return _map(lambda total: crop(total[:, :-1] / total[:, -1:]), sums)


class _Place:
    """Where a tile lies in the picture, all in pixels of the picture."""

    def __init__(
        self, start: tuple[int, ...], shape: tuple[int, ...], full: tuple[int, ...], overlap: int
    ) -> None:
        self.start, self.shape, self.full, self.overlap = start, shape, full, overlap

    def canvas(self, maps: Tensor) -> Tensor:
        """Zeros of the whole picture's size; one channel more holds the sum of the weights."""
        rows, columns = (
            full * have // shape
            for full, have, shape in zip(self.full, maps.shape[-2:], self.shape, strict=True)
        )
        return maps.new_zeros(len(maps), maps.shape[1] + 1, rows, columns)

    def add(self, canvas: Tensor, maps: Tensor) -> Tensor:
        """Add a tile's maps times their weights, and the weights, in place."""
        for dim, (start, shape) in enumerate(zip(self.start, self.shape, strict=True), start=-2):
            canvas = canvas.narrow(dim, start * maps.shape[dim] // shape, maps.shape[dim])
        weights = [
            self._ramp(maps.shape[dim], shape).to(maps)
            for dim, shape in zip((-2, -1), self.shape, strict=True)
        ]
        weight = (weights[0][:, None] * weights[1]).expand(len(maps), 1, -1, -1)
        return canvas.add_(torch.cat([maps * weight, weight], 1))

    def _ramp(self, side: int, shape: int) -> Tensor:
        """Weights along a side: rising over the overlap, 1, falling."""
        place = torch.arange(side) + 0.5
        return (torch.minimum(place, side - place) * shape / (self.overlap * side)).clamp(max=1.0)


def _starts(full: int, side: int, step: int) -> Iterator[int]:
    """Starts of tiles of ``side`` that cover ``full``; the last one ends where the picture does."""
    last = max(0, full - side)
    yield from range(0, last, step)
    yield last


def _map(function: Callable[..., Tensor], *answers: Any) -> Any:
    """Apply a function to each map, or to maps of the same place, in tuples and dictionaries."""
    first = answers[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: _map(function, *(a[name] for a in answers)) for name in first}
    if isinstance(first, tuple | list):
        return tuple(_map(function, *parts) for parts in zip(*answers, strict=True))
    return function(*answers)
