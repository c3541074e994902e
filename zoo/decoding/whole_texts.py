"""Methods that look for a whole text before its first token is known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from zoo.decoding.beam import Found
from zoo.decoding.method import Method, Run
from zoo.decoding.sampling import decided
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft


class WholeTextMethod(Method):
    """Searches when the first token is asked for, and then hands the best texts out.

    The target is read by :meth:`search` alone, and nothing is drawn from what is handed out. A step
    is one token whatever the search has cost; :meth:`report` says that.

    Attributes:
        found: of the last call, for each prompt all that was found, the best first.
    """

    lossless = False
    draws = False
    constrains = True
    reads_prompts = True
    verifier = "greedy"
    found: list[list[Found]]

    def start(self, run: Run, prompt: Scores) -> None:
        """Let the target read the prompts."""
        self._first = run.target.advance(run.sequences, self.hidden_layer)
        if run.constraints is not None:
            run.constraints.check(self._first.logits[:, -1], run.sequences)
        self._starts = [len(sequence) for sequence in run.sequences]
        self._texts: list[list[int]] = []

    @abstractmethod
    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """Continuations of each sequence, the best first: of ``run.limit`` tokens or up to what
        ends it.

        Args:
            run: whose target has read the sequences, and is of no use afterwards.
            first: what the target says after them.
        """

    def propose(self, run: Run) -> Draft:
        """Nothing but the roots."""
        if not self._texts:
            self.found = self.search(run, self._first)
            self._texts = [found[0].tokens for found in self.found]
            # as many rows as there are sequences again; nobody reads them any more
            run.target.select([0] * len(run.sequences))
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.sequences), tokens)

    def score(self, run: Run, draft: Draft) -> Scores:
        """Logits that leave the text that was found."""
        rows = zip(self._texts, run.sequences, self._starts, strict=True)
        chosen = [[text[len(now) - start]] for text, now, start in rows]
        logits = torch.zeros(len(chosen), 1, run.target.vocab_size, device=run.target.device)
        return Scores(decided(logits, chosen), None)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Nothing: the target has no part in it any more."""

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Go on with these sequences."""
        self._texts = [self._texts[row] for row in rows]
        self._starts = [self._starts[row] for row in rows]
