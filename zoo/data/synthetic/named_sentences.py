"""English sentences with names of people, places, firms, which alone do not say what they are."""

from __future__ import annotations

import random

FIRST = ["Anna", "Berta", "Carl", "Doris", "Emil", "Frida", "Georg", "Hanna"]
#: Of people, of places and of firms alike.
SHARED = ["Berg", "Lund", "Stein", "Holm", "Falk", "Winter", "Strand", "Linden", "Brandt", "Hagen"]
KINDS = ["Bank", "Motors", "Press", "Airlines"]


def named_sentence(random: random.Random) -> list[tuple[str, str]]:
    """Tokens with tags of PER, LOC and ORG in BIO.

    "Anna Lund of Lund Motors met Berg in Holm ." - what Lund is, its neighbours say: behind a first
    name or before "met" a person, before a kind of firm a firm, behind "in" a place.

    Args:
        random: draws it.
    """
    return [
        *_person(random),
        *([("of", "O"), *_firm(random)] if random.random() < 0.5 else []),
        (random.choice(["met", "saw", "called"]), "O"),
        *(_person(random) if random.random() < 0.7 else _firm(random)),
        *([("in", "O"), (random.choice(SHARED), "B-LOC")] if random.random() < 0.7 else []),
        (".", "O"),
    ]


def _person(random: random.Random) -> list[tuple[str, str]]:
    if random.random() < 0.4:
        return [(random.choice(SHARED), "B-PER")]
    return [(random.choice(FIRST), "B-PER"), (random.choice(SHARED), "I-PER")]


def _firm(random: random.Random) -> list[tuple[str, str]]:
    return [(random.choice(SHARED), "B-ORG"), (random.choice(KINDS), "I-ORG")]
