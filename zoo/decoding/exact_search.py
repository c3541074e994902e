"""The likeliest text of a language model, exactly: depth first, cut off by the best so far."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.decoding.attributes import Attribute
from zoo.decoding.beam import Beams, Found, log_probs
from zoo.decoding.method import Run
from zoo.decoding.session import Scores
from zoo.decoding.tree import PADDING
from zoo.errors import ZooError

#: So many prefixes of a sequence are read in one pass.
TOGETHER = 16


class _Prefix(NamedTuple):
    """A text that goes on and was not read yet."""

    text: list[int]
    log_prob: float


class _Search:
    """The search of one sequence: prefixes to come, the next one last, and the best text."""

    def __init__(self, run: Run, number: int, attribute: Attribute | None) -> None:
        self.run, self.number, self.attribute = run, number, attribute
        self.stack: list[_Prefix] = []
        self.fitting, self.other = Beams(1), Beams(1)

    def branch(self, prefix: _Prefix, said: Tensor) -> None:
        """Enter what may follow a prefix ``[V]``, the likeliest to be read first."""
        values, tokens = (prefix.log_prob + said).sort(descending=True, stable=True)
        entered = []
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            if value == -math.inf or self._hopeless(value):
                break
            text = [*prefix.text, token]
            ended = self.run.stop.ends(self.run.sequences[self.number] + text)
            if not ended and len(text) < self.run.limit:
                if self.attribute is None or self.attribute.possible(text):
                    entered.append(_Prefix(text, value))
            elif self.attribute is None or self.attribute.holds(text, ended):
                self.fitting.finish(text, value)
            else:
                self.other.finish(text, value)
        self.stack += entered[::-1]

    def _hopeless(self, log_prob: float) -> bool:
        return self.fitting.best is not None and log_prob <= self.fitting.best.score

    def next(self, count: int) -> list[_Prefix]:
        """Up to so many prefixes that are worth reading."""
        chosen: list[_Prefix] = []
        while self.stack and len(chosen) < count:
            prefix = self.stack.pop()
            if not self._hopeless(prefix.log_prob):
                chosen.append(prefix)
        return chosen

    def found(self) -> Found:
        """The best text, or the likeliest where none is as it was asked to be."""
        for beams, holds in ((self.fitting, True), (self.other, False)):
            if beams.best is not None:
                return beams.best._replace(holds=holds)
        raise ZooError(
            "the search has found no text that is over: allow more nodes, fewer new tokens, or an "
            "attribute that texts can have"
        )


def find_mode(
    run: Run, first: Scores, attribute: Attribute | None, nodes: int
) -> tuple[list[Found], list[bool]]:
    """The likeliest continuation of each sequence, and whether it is proved to be.

    Args:
        run: its target has read the sequences.
        first: what the target says after them.
        attribute: what the texts must have.
        nodes: most prefixes that are read for each.
    """
    searches = [_Search(run, number, attribute) for number in range(len(run.sequences))]
    said = log_probs(run, first.logits[:, -1], range(len(searches)), [[]] * len(searches))
    for one, row in zip(searches, said, strict=True):
        one.branch(_Prefix([], 0.0), row)
    left = nodes
    while left:
        chosen = [one.next(min(TOGETHER, left)) for one in searches]
        if not any(chosen):
            break
        left -= max(map(len, chosen))
        numbers = [number for number, prefixes in enumerate(chosen) for _ in prefixes]
        prefixes = [prefix for row in chosen for prefix in row]
        texts = [prefix.text for prefix in prefixes]
        said = log_probs(run, _read(run, chosen), numbers, texts)
        for number, prefix, row in zip(numbers, prefixes, said, strict=True):
            searches[number].branch(prefix, row)
    proved = [not one.next(1) for one in searches]
    return [one.found() for one in searches], proved


def _read(run: Run, chosen: list[list[_Prefix]]) -> Tensor:
    """What the target says after some prefixes of each sequence, ``[n, V]``.

    They are read as one tree, which is closed again: it need not be kept, and stays small.
    """
    tokens: list[list[int]] = []
    parents: list[list[int]] = []
    rows, ends = [], []
    for row, prefixes in enumerate(chosen):
        places: dict[tuple[int, ...], int] = {(): -1}
        tokens.append([])
        parents.append([])
        for prefix in prefixes:
            for size in range(1, len(prefix.text) + 1):
                path = tuple(prefix.text[:size])
                if path not in places:
                    places[path] = len(tokens[row])
                    tokens[row].append(path[-1])
                    parents[row].append(places[path[:-1]])
            rows.append(row)
            ends.append(places[tuple(prefix.text)])
    width = max(map(len, tokens))
    device = run.target.device
    scores = run.target.grow(
        torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device),
        torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in parents], device=device),
    )
    run.target.commit([[]] * len(chosen))
    return scores.logits[rows, ends]
