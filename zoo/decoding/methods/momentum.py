"""Momentum decoding: greedy, but slowed where the text would walk a known path again.

Paper: Momentum Decoding: Open-ended Text Generation As Graph Exploration (2022, arXiv 2212.02175).
Code: gmftbyGMFTBY/MomentumDecoding, whose commits b69c0ee and 84f3d8b have two tables of
resistances. The text is not the target's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.sampling import decided
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError

#: Longest path that is looked for, in tokens.
LONGEST = 5
#: Resistance of a token that ends a known path of 0 (it is new), 1, ... tokens; longer ones are
#: never taken.
TABLES: dict[str, tuple[float, ...]] = {
    "momentum": (0, 1, 3, 4, 5, 5),
    "momentum_head": (0, 1, 2, 3, 4, 5),
    "blocking": (0, 0, 0, 0, 5, math.inf),
    "chinese": (0, 1, 1, 2, 3, 4),
    "constant": (0, 2, 2, 2, 2, 2),
    "log": tuple(math.log(1 + r, 6) / 0.2 for r in range(6)),
    "exp": (0.5, 0.75, 1.125, 1.6875, 2.53125, 3.796875),
}


class Paths:
    """The n-grams of a text, up to :data:`LONGEST` tokens.

    Args:
        text: the tokens so far.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._grams: set[tuple[int, ...]] = set()
        self._last: tuple[int, ...] = ()
        for token in text:
            self.append(token)

    def append(self, token: int) -> None:
        """The text goes on with a token."""
        window = (*self._last, token)
        self._grams.update(window[place:] for place in range(len(window)))
        self._last = window[1 - LONGEST :]

    def known(self, token: int) -> int:
        """Length of the longest n-gram of the text that would stand at its end once more."""
        window, length = (*self._last, token), 0
        while length < len(window) and window[-1 - length :] in self._grams:
            length += 1
        return length


@register_method
class Momentum(Method):
    """The best of a few candidates by probability less resistance, at any temperature.

    Args:
        k: candidates, the most probable tokens.
        alpha: weight of the resistance.
        table: resistances by the length of the known path that a token would end, or the name of a
            published table (:data:`TABLES`); lengths behind its end are never taken, if any other
            candidate is left. The authors' n-gram blocking is ``blocking`` with k = 2000.
    """

    name = "momentum"
    proposer = "nobody: known paths resist"
    lossless = False
    draws = False
    constrains = True
    verifier = "greedy"

    def __init__(
        self, k: int = 5, alpha: float = 0.2, table: str | Sequence[float] = "momentum"
    ) -> None:
        if isinstance(table, str):
            if table not in TABLES:
                raise ZooError(
                    f"table is {table!r}: expected numbers or one of {', '.join(TABLES)}"
                )
            table = TABLES[table]
        if k < 1 or not alpha >= 0 or not table:
            raise ZooError(
                f"k {k}, alpha {alpha}, table {list(table)}: expected 1 or more candidates, a "
                "weight of 0 or more, and resistances"
            )
        self.k, self.alpha = k, alpha
        self.table = [float(value) for value in table][: LONGEST + 1]

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The setting whose text is the target's own: nothing resists."""
        return {"": cls(table=[0.0] * (LONGEST + 1))}

    def start(self, run: Run, prompt: Scores) -> None:
        """The prompts are paths too."""
        self._paths = [Paths(sequence) for sequence in run.sequences]
        self._tokens = self._best = self._new = 0

    def propose(self, run: Run) -> Draft:
        """The roots alone."""
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.roots), tokens)

    def score(self, run: Run, draft: Draft) -> Scores:
        """Logits that leave the choice."""
        logits = super().score(run, draft).logits
        said = run.constrained(logits[:, 0], run.sequences, range(len(run.sequences)))
        probs, tokens = said.float().softmax(-1).topk(min(self.k, said.shape[-1]))
        chosen = []
        rows = zip(probs.tolist(), tokens.tolist(), said.argmax(-1).tolist(), strict=True)
        for paths, (p, candidates, best) in zip(self._paths, rows, strict=True):
            # of equal ones the first is the best, which is not the order of a top k
            others = [token for token in candidates if token != best]
            chosen.append([self._choose(paths, p, [best, *others][: len(p)])])
        return Scores(decided(said[:, None], chosen), None)

    def _choose(self, paths: Paths, probs: list[float], candidates: list[int]) -> int:
        """The candidate of the highest score; where all are ruled out, the likeliest."""
        known = [paths.known(token) for token in candidates]
        scores = [p - self.resistance(r) for p, r in zip(probs, known, strict=True)]
        # what constraints rule out stays behind all others
        best = max(range(len(scores)), key=lambda i: (probs[i] > 0, scores[i], probs[i]))
        self._tokens, self._best = self._tokens + 1, self._best + (best == 0)
        self._new += known[best] == 0
        return candidates[best]

    def resistance(self, known: int) -> float:
        """alpha f(r) for the length r of a known path."""
        if known >= len(self.table):
            return math.inf
        value = self.table[known]
        return value if math.isinf(value) else self.alpha * value

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Go one step along the graph."""
        for paths, verdict in zip(self._paths, verdicts, strict=True):
            paths.append(verdict.token)

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the paths of these sequences."""
        self._paths = [self._paths[row] for row in rows]

    def report(self) -> dict[str, float]:
        """Share of the tokens that are the target's best ones, and of those that are new."""
        return {
            "greedy_ratio": self._best / max(self._tokens, 1),
            "share_new": self._new / max(self._tokens, 1),
        }
