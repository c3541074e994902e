"""English sentences whose verb agrees with its subject, or does not, in the layout of CoLA."""

from __future__ import annotations

import random

NOUNS = [
    "author",
    "cat",
    "dog",
    "doctor",
    "friend",
    "guard",
    "horse",
    "king",
    "neighbour",
    "painter",
    "pilot",
    "singer",
    "teacher",
    "uncle",
    "writer",
]
VERBS = [
    "admire",
    "call",
    "follow",
    "help",
    "know",
    "like",
    "meet",
    "praise",
    "see",
    "visit",
]
PLACES = ["behind", "near", "beside", "with"]
ADJECTIVES = ["old", "young", "tall", "kind", "famous", "quiet"]


def sentence(random: random.Random, acceptable: bool) -> str:
    """Subject, a phrase behind it whose noun has the other number, verb, object.

    "the old authors near the cat help the king": the verb must agree with the first noun; here the
    second, which stands beside the verb, always says the opposite.

    Args:
        random: draws it.
        acceptable: whether the verb agrees.
    """
    plural = random.random() < 0.5
    subject, other, thing = random.sample(NOUNS, 3)
    verb = random.choice(VERBS)
    words = [
        "the",
        *([random.choice(ADJECTIVES)] if random.random() < 0.5 else []),
        subject + "s" * plural,
        random.choice(PLACES),
        "the",
        other + "s" * (not plural),
        verb if plural == acceptable else verb + "s",
        "the",
        thing,
    ]
    return " ".join(words) + " ."
