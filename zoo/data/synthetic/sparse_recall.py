"""Sparse recall: few pairs of a key and a value among filler, and one key again at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError

#: Before each pair, and nowhere else.
FLAG = 0


def sparse_recall(
    batch_size: int,
    length: int = 128,
    vocab_size: int = 16,
    pairs: int = 6,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs at random places, each behind a flag, and a key to look up.

    All other symbols are drawn alike, whether they are keys, values or filler: the flag alone says
    which matter. The keys of a sequence differ.

    Args:
        batch_size: B.
        length: L.
        vocab_size: symbols, the flag (0) included.
        pairs: of a sequence.
        generator: draws everything.

    Returns:
        tokens ``[B, L]``, whose last is the key; the value ``[B]`` of that key; and where flags,
        keys and values stand, bool ``[B, L]``.

    Raises:
        ZooError: if there is no room for the pairs, or there are fewer symbols than keys.
    """
    spare = length - 1 - 3 * pairs
    if pairs < 1 or spare < 0 or vocab_size - 1 < pairs:
        raise ZooError(
            "sparse recall needs 1 pair or more, 3 tokens for each, one for the key, and symbols "
            f"beside the flag for as many keys; got {pairs} pairs, length {length} and vocab_size "
            f"{vocab_size}"
        )
    tokens = torch.randint(1, vocab_size, (batch_size, length), generator=generator)
    keys = torch.rand(batch_size, vocab_size - 1, generator=generator).argsort(1)[:, :pairs] + 1
    values = torch.randint(1, vocab_size, (batch_size, pairs), generator=generator)
    # so many of the blocks of three and single tokens are blocks
    slots = torch.rand(batch_size, spare + pairs, generator=generator).argsort(1)[:, :pairs]
    flags = slots.sort(1).values + 2 * torch.arange(pairs)
    tokens.scatter_(1, flags, FLAG)
    tokens.scatter_(1, flags + 1, keys)
    tokens.scatter_(1, flags + 2, values)
    marked = torch.zeros(batch_size, length, dtype=torch.bool)
    for step in range(3):
        marked.scatter_(1, flags + step, True)
    asked = torch.randint(pairs, (batch_size, 1), generator=generator)
    tokens[:, -1] = keys.gather(1, asked)[:, 0]
    return tokens, values.gather(1, asked)[:, 0], marked
