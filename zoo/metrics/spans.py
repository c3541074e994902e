"""Scores of spans that tags mark: what CoNLL's evaluation counts, by seqeval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.errors import ZooError


def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each span of a sentence in BIO, IOB or BIOES.

    Raises:
        ZooError: seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise ZooError(
            "spans of tags need seqeval, which is not installed: pip install 'ssm-zoo[language]'"
        ) from error
    return get_entities(list(tags))


def marks_spans(tags: Sequence[str]) -> bool:
    """Whether these names of tags are those of spans: O, and ``B-``, ``I-``, ``E-``, ``S-``."""
    return all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags)


class SpanScores(Metric):
    """``precision``, ``recall`` and ``f1`` of spans over all sentences (micro), as seqeval's.

    A span is right if its type and both ends are. Where nothing was found, or is to be found, a
    score is 0.
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        for name in ("found", "wanted", "right"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Sequence[Sequence[str]], target: Sequence[Sequence[str]]) -> None:
        """Tags of sentences, twice, of the same lengths."""
        for guess, truth in zip(predicted, target, strict=True):
            found, wanted = set(spans_of(guess)), set(spans_of(truth))
            self.found += len(found)
            self.wanted += len(wanted)
            self.right += len(found & wanted)

    def compute(self) -> dict[str, Tensor]:
        """The three scores."""
        return {
            "precision": self.right / self.found.clamp(min=1),
            "recall": self.right / self.wanted.clamp(min=1),
            "f1": 2 * self.right / (self.found + self.wanted).clamp(min=1),
        }
