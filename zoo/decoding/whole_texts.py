"""Methods that look for a whole text before its first token is known."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch

from zoo.decoding.method import Method, Run
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft


class WholeTextMethod(Method):
    """Searches when the first token is asked for, and then hands the found texts out.

    The target is read by :meth:`search` alone. Nothing is drawn from what is handed out, so any
    verifier gives the found text.
    """

    lossless = False
    reads_prompts = True

    def start(self, run: Run, prompt: Scores) -> None:
        """Let the target read the prompts."""
        self._first = run.target.advance(run.sequences, self.hidden_layer)
        if run.constraints is not None:
            run.constraints.check(self._first.logits[:, -1], run.sequences)
        self._starts = [len(sequence) for sequence in run.sequences]
        self._texts: list[list[int]] = []

    @abstractmethod
    def search(self, run: Run, first: Scores) -> list[list[int]]:
        """The new tokens of each sequence, one that ends it included.

        Args:
            run: whose target has read the sequences, and is of no use afterwards.
            first: what the target says after them.
        """

    def propose(self, run: Run) -> Draft:
        """Nothing but the roots."""
        if not self._texts:
            self._texts = self.search(run, self._first)
            # as many rows as there are sequences again; nobody reads them any more
            run.target.select([0] * len(run.sequences))
        tokens = torch.tensor([[sequence[-1]] for sequence in run.sequences])
        return Draft([Tree.root()] * len(run.sequences), tokens.to(run.target.device))

    def score(self, run: Run, draft: Draft) -> Scores:
        """Certainty of the next token that was found."""
        rows = zip(self._texts, run.sequences, self._starts, strict=True)
        following = torch.tensor([text[len(now) - start] for text, now, start in rows])
        logits = torch.full((len(following), 1, run.target.vocab_size), -math.inf)
        logits[range(len(following)), 0, following] = 0.0
        return Scores(logits.to(run.target.device), None)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Nothing: the target has no part in it any more."""

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Go on with these sequences."""
        self._texts = [self._texts[row] for row in rows]
        self._starts = [self._starts[row] for row in rows]
