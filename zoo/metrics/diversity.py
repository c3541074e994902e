"""How much texts repeat themselves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]


def _grams(text: Text, n: int, drop_last: bool) -> list[tuple[Hashable, ...]]:
    count = len(text) - n + (0 if drop_last else 1)
    return [tuple(text[start : start + n]) for start in range(max(count, 0))]


def repetition(texts: Sequence[Text], n: int, drop_last: bool = False) -> float:
    """rep-n: the share of n-grams that their text holds already, in percent.

    Args:
        texts: words or tokens. n-grams are told apart within each text and counted over all.
        n: words of an n-gram.
        drop_last: leave out the last n-gram of each text, as the authors' script does (SimCTG,
            arXiv 2202.06417).
    """
    found = [_grams(text, n, drop_last) for text in texts]
    total = sum(map(len, found))
    return 100 * (1 - sum(len(set(grams)) for grams in found) / total) if total else 0.0


def diversity(texts: Sequence[Text], drop_last: bool = False) -> float:
    """Product of the shares of n-grams that are new, for n of 2, 3 and 4; 1: nothing repeats."""
    shares = [1 - repetition(texts, n, drop_last) / 100 for n in (2, 3, 4)]
    return shares[0] * shares[1] * shares[2]
