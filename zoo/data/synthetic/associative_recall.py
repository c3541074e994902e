"""Associative recall: which value stood behind a key (H3, arXiv 2212.14052, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError

#: "=>", before the key that is asked for, and ".", which belongs to the vocabulary and is not used.
SPECIAL = 2


def associative_recall(
    batch_size: int,
    length: int = 20,
    vocab_size: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of a key and its value, then "=>" and a key that was there.

    Args:
        batch_size: B.
        length: L of all pairs, even.
        vocab_size: symbols, the two special ones included; half of the others are keys.
        generator: draws them.

    Returns:
        tokens ``[B, L + 2]``: in each sequence another map from keys (the lower symbols) to values,
        of which keys are drawn again and again; and the value ``[B]`` of the last key. "=>" is
        ``vocab_size - 2``.

    Raises:
        ZooError: if there is no pair, or no key.
    """
    keys = (vocab_size - SPECIAL) // 2
    if length < 2 or length % 2 or keys < 1:
        raise ZooError(
            "associative recall needs an even length from 2 on and 4 symbols, got length "
            f"{length} and vocab_size {vocab_size}"
        )
    values = torch.randint(keys, vocab_size - SPECIAL, (batch_size, keys), generator=generator)
    drawn = torch.randint(keys, (batch_size, length // 2), generator=generator)
    asked = torch.randint(length // 2, (batch_size, 1), generator=generator)
    pairs = torch.stack([drawn, values.gather(1, drawn)], dim=2).flatten(1)
    key = drawn.gather(1, asked)
    marker = torch.full_like(key, vocab_size - SPECIAL)
    return torch.cat([pairs, marker, key], dim=1), values.gather(1, key)[:, 0]


def multi_query_recall(
    batch_size: int, pairs: int = 10, keys: int = 32, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Pairs of a key and its value, then all keys again, each before its value (multi-query
    associative recall, arXiv 2312.04927).

    Args:
        batch_size: B.
        pairs: with different keys; the values are drawn one by one.
        keys: how many different ones there are, and as many values.
        generator: draws them.

    Returns:
        tokens ``[B, 4 * pairs]``, keys from 0 and values from ``keys`` on; and which of them are
        values of keys that were there before, bool of that shape.

    Raises:
        ZooError: if there is no pair, or there are too few keys.
    """
    if not 1 <= pairs <= keys:
        raise ZooError(
            f"{pairs} pairs of {keys} different keys: expected a pair at least, and a key for each"
        )
    scores = torch.rand(batch_size, keys, generator=generator)
    drawn = scores.argsort(1)[:, :pairs]
    values = torch.randint(keys, 2 * keys, (batch_size, pairs), generator=generator)
    order = torch.rand(batch_size, pairs, generator=generator).argsort(1)
    first, again = (
        torch.stack([k, v], dim=2).flatten(1)
        for k, v in ((drawn, values), (drawn.gather(1, order), values.gather(1, order)))
    )
    tokens = torch.cat([first, again], dim=1)
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, 2 * pairs + 1 :: 2] = True
    return tokens, known
