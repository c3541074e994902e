"""Methods that find whole texts before the first token is given out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from zoo.decoding.method import Method, Run
from zoo.decoding.sampling import decided
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft


class Found(NamedTuple):
    """A continuation that a search has found, and its score; the higher, the better."""

    tokens: list[int]
    score: float


class Planner(Method):
    """A search for continuations: the best one of each sequence becomes its text.

    The text is the same at any temperature. It is given out token by token, so that a step is one
    token whatever the search has cost; :meth:`report` says that.

    Attributes:
        found: of the last call, for each sequence all that was found, the best first.
    """

    lossless = False
    draws = False
    constrains = True
    verifier = "greedy"
    found: list[list[Found]]

    def start(self, run: Run, prompt: Scores) -> None:
        """Search; the target has read all tokens but the roots."""
        self.found = self.search(run)
        self._texts = [
            [*sequence, *found[0].tokens]
            for sequence, found in zip(run.sequences, self.found, strict=True)
        ]

    @abstractmethod
    def search(self, run: Run) -> list[list[Found]]:
        """Continuations of each sequence, the best first; ``run.limit`` tokens or up to a stop
        token.

        The target is asked in ``run.target``, whose tree is closed in the end, and not again.
        """

    def propose(self, run: Run) -> Draft:
        """The roots alone."""
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.roots), tokens)

    def score(self, run: Run, draft: Draft) -> Scores:
        """Logits that leave the text that was found."""
        chosen = [
            [text[len(sequence)]] for text, sequence in zip(self._texts, run.sequences, strict=True)
        ]
        logits = torch.zeros(len(chosen), 1, run.target.vocab_size, device=run.target.device)
        return Scores(decided(logits, chosen), None)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Nothing: the target has read what it had to."""

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the texts of these sequences."""
        self._texts = [self._texts[row] for row in rows]
