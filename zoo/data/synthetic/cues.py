"""Made maps and sequences for proofs of what a network can see."""

from __future__ import annotations

import torch
from torch import Tensor

CUE_CHANNELS, CUE_CLASSES = 8, 4
MARKER_HEADERS, MARKER_CHANNELS, MARKER_CLASSES = 6, 8, 4


def cue_maps(
    count: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a cue in one cell, drawn uniformly.

    Channels are noise of standard deviation 0.3; in the cue's cell, the channel of its class and
    the flag channel after the classes are raised by 2.

    Returns:
        maps [count, 8, height, width], classes [count], and the cue's cell [count], row by row.
    """
    maps = 0.3 * torch.randn(count, CUE_CHANNELS, height * width, generator=generator)
    classes = torch.randint(CUE_CLASSES, (count,), generator=generator)
    cells = torch.randint(height * width, (count,), generator=generator)
    which = torch.arange(count)
    maps[which, classes, cells] += 2
    maps[which, CUE_CLASSES, cells] += 2
    return maps.unflatten(2, (height, width)), classes, cells


def bit_maps(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random bit in each cell: [count, height, width] of 0 and 1, int64."""
    return torch.randint(2, (count, height, width), generator=generator)


def marker_sequences(
    count: int, generator: torch.Generator, length: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """How far apart are two markers?

    Filler is noise of standard deviation 0.3. The first six tokens are headers with a flag; two of
    the others, a uniformly drawn distance apart, are markers with another flag.

    Returns:
        tokens [count, length, 8]; classes [count], the quarter of all distances that this one is
        in; and the places of headers and markers [count, 8], ascending.
    """
    free = length - MARKER_HEADERS
    tokens = 0.3 * torch.randn(count, length, MARKER_CHANNELS, generator=generator)
    distances = torch.randint(1, free - 1, (count,), generator=generator)
    share = torch.rand(count, generator=generator)
    first = MARKER_HEADERS + (share * (free - distances)).long()
    headers = torch.arange(MARKER_HEADERS).expand(count, -1)
    markers = torch.stack([first, first + distances], dim=1)
    tokens[:, :MARKER_HEADERS, 0] += 2
    tokens.scatter_add_(
        1,
        markers[..., None].expand(-1, -1, MARKER_CHANNELS),
        torch.eye(MARKER_CHANNELS)[1].expand(count, 2, -1) * 2,
    )
    classes = (distances - 1) * MARKER_CLASSES // (free - 2)
    return tokens, classes, torch.cat([headers, markers], dim=1)
