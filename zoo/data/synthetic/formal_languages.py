"""Sequences that only a machine with states can follow, and what it answers after each symbol.

Each function draws sequences of one length with the right answer at every position, by running the
machine itself. How hard a task is, its arguments say; which models can and cannot learn them beyond
the lengths they were trained on: arXiv 2207.02098 and 2411.12537.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

#: Groups of :func:`group_words`: permutations of so many things, all or the even ones alone.
GROUPS = {"S3": (3, False), "S4": (4, False), "S5": (5, False), "A5": (5, True)}


def parity(
    batch_size: int, length: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random bits, and whether the number of ones so far is odd.

    Args:
        batch_size, length: B and L.
        generator: draws them.

    Returns:
        bits and answers, int64 ``[B, L]`` of 0 and 1.
    """
    return counting(batch_size, length, 2, generator)


def counting(
    batch_size: int, length: int, modulus: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random bits, and the number of ones so far modulo a number.

    Args:
        batch_size, length, generator: as in :func:`parity`.
        modulus: of the answers.

    Returns:
        bits and answers, int64 ``[B, L]``.
    """
    bits = torch.randint(2, (batch_size, length), generator=generator)
    return bits, bits.cumsum(1) % modulus


def group_words(
    batch_size: int, length: int, group: str, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random elements of a group of permutations, and the product of those so far.

    Args:
        batch_size, length, generator: as in :func:`parity`.
        group: of :data:`GROUPS`; S3, S4, S5 and A5 have 6, 24, 120 and 60 elements. S5 and A5 are
            not solvable: no constant number of layers without states can follow them.

    Returns:
        elements and products, int64 ``[B, L]``; element 0 is the identity.
    """
    table = multiplication_table(group)
    words = torch.randint(len(table), (batch_size, length), generator=generator)
    products = [words[:, 0]]
    for t in range(1, length):
        products.append(table[words[:, t], products[-1]])
    return words, torch.stack(products, dim=1)


@cache
def multiplication_table(group: str) -> Tensor:
    """``[n, n]``: which element it is to apply the second index's, then the first's."""
    size, even = GROUPS[group]
    elements = [p for p in itertools.permutations(range(size)) if not even or _is_even(p)]
    place = {p: i for i, p in enumerate(elements)}
    return torch.tensor([[place[tuple(a[i] for i in b)] for b in elements] for a in elements])


def _is_even(permutation: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(a > b for a, b in pairs) % 2 == 0


def modular_arithmetic(
    batch_size: int,
    length: int,
    modulus: int = 5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums, differences and products of digits, and the value so far: products bind first.

    Args:
        batch_size, length, generator: as in :func:`parity`.
        modulus: of the digits and the answers.

    Returns:
        symbols int64 ``[B, L]``, at even positions a digit, at odd ones +, - or *, which are
        ``modulus``, ``modulus + 1`` and ``modulus + 2``; and the value of the expression up to the
        last digit.
    """
    digits = torch.randint(modulus, (batch_size, length), generator=generator)
    operators = torch.randint(3, (batch_size, length), generator=generator)
    place = torch.arange(length)
    symbols = torch.where(place % 2 == 0, digits, modulus + operators)
    total = torch.zeros(batch_size, dtype=torch.long)  # of the terms that are complete
    term, values = digits[:, 0], [digits[:, 0]]
    for t in range(1, length):
        if t % 2 == 0:
            operator, digit = operators[:, t - 1], digits[:, t]
            times = operator == 2
            total = torch.where(times, total, total + term)
            term = torch.where(times, term * digit, torch.where(operator == 0, digit, -digit))
            term = term % modulus
        values.append((total + term) % modulus)
    return symbols, torch.stack(values, dim=1)


def associative_recall(
    batch_size: int,
    pairs: int,
    queries: int,
    keys: int = 32,
    values: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of a key and a value, then keys again, whose values are asked for (MQAR,
    arXiv 2312.04927).

    Args:
        batch_size, generator: as in :func:`parity`.
        pairs: of a sequence, with different keys.
        queries: of them, no key twice.
        keys, values: how many there are; a value's symbol is ``keys`` plus its number.

    Returns:
        symbols int64 ``[B, 2 pairs + queries]`` and the answers to the last ``queries`` of them.
    """
    order = torch.rand(batch_size, keys, generator=generator).argsort(1)[:, :pairs]
    content = keys + torch.randint(values, (batch_size, pairs), generator=generator)
    asked = torch.rand(batch_size, pairs, generator=generator).argsort(1)[:, :queries]
    stored = torch.stack([order, content], dim=2).flatten(1)
    return torch.cat([stored, order.gather(1, asked)], dim=1), content.gather(1, asked)
