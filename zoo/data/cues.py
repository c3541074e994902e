"""Made maps for proofs of reach: a cue in one cell, or a bit in each."""

from __future__ import annotations

import torch
from torch import Tensor

CUE_CHANNELS, CUE_CLASSES = 8, 4


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
