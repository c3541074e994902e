"""Selective copying: remember tokens among noise, in order (Mamba, arXiv 2312.00752, 4.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE, QUERY = 0, 1
FIRST_SYMBOL = 2


def selective_copying(
    batch_size: int,
    length: int = 64,
    memorize: int = 8,
    symbols: int = 8,
    generator: torch.Generator | None = None,
    fixed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sequences of noise with a few symbols at random places, then as many queries.

    Args:
        batch_size: B.
        length: positions before the queries.
        memorize: M symbols in each, asked for in the order in which they came.
        symbols: different symbols; the vocabulary is two more.
        generator: draws them.
        fixed: the symbols stand at the beginning, as in ordinary copying.

    Returns:
        tokens ``[B, length + M]``, and the symbols ``[B, M]`` that the last M positions ask for.
    """
    places = torch.rand(batch_size, length, generator=generator).argsort(1)[:, :memorize].sort(1)[0]
    if fixed:
        places = torch.arange(memorize).expand(batch_size, -1)
    data = torch.randint(symbols, (batch_size, memorize), generator=generator) + FIRST_SYMBOL
    tokens = torch.full((batch_size, length + memorize), NOISE)
    tokens.scatter_(1, places, data)
    tokens[:, length:] = QUERY
    return tokens, data
