"""Made texts of bytes: reviews that like or dislike, papers on one subject or on two."""

from __future__ import annotations

import random

_GOOD = ("wonderful", "moving", "splendid", "clever", "charming", "delightful", "superb")
_BAD = ("dull", "clumsy", "tedious", "dreadful", "shallow", "pointless", "lifeless")
_PLOT = (
    "the film begins in a small town . a stranger comes by train . she looks for her brother . "
    "nobody has seen him for years . the second act is set at sea . there is a long dinner . "
    "the music is by an old friend of the director . it runs for two hours . "
)
_NEUTRAL = tuple(_PLOT.split())
_SUBJECTS = (
    ("parsing", "grammar", "treebank", "dependency", "constituent", "head"),
    ("translation", "alignment", "phrase", "decoder", "bilingual", "corpus"),
    ("speech", "acoustic", "phoneme", "recogniser", "utterance", "prosody"),
    ("summary", "sentence", "extraction", "salience", "headline", "compression"),
    ("morphology", "stem", "suffix", "inflection", "lemma", "analyser"),
    ("dialogue", "turn", "intent", "slot", "policy", "response"),
)
_COMMON = ("we", "show", "that", "the", "new", "model", "of", "our", "data", "has", "results")


def review(random: random.Random, good: bool, words: int) -> str:
    """A review; one word in eight tells whether it likes the film, one of these in ten misleads."""
    written = []
    for i in range(words):
        if random.random() < 1 / 8:
            misleads = random.random() < 0.1
            written.append(random.choice(_GOOD if good != misleads else _BAD))
        else:
            written.append(_NEUTRAL[i % len(_NEUTRAL)])
    return " ".join(written)


def papers(random: random.Random, related: bool, words: int) -> tuple[str, str]:
    """Two papers; related ones have one subject, a third of whose words are its own."""
    first = random.randrange(len(_SUBJECTS))
    others = [i for i in range(len(_SUBJECTS)) if i != first]
    second = first if related else random.choice(others)
    return _paper(random, first, words), _paper(random, second, words)


def _paper(random: random.Random, subject: int, words: int) -> str:
    return " ".join(
        random.choice(_SUBJECTS[subject] if random.random() < 1 / 3 else _COMMON)
        for _ in range(words)
    )
