"""Contrastive search: among likely tokens one whose state resembles no earlier one.

Paper: A Contrastive Framework for Neural Text Generation (NeurIPS 2022, arXiv 2202.06417); here it
is what momentum decoding is measured against. The text is not the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.sampling import decided
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft
from zoo.errors import ZooError


@register_method
class Contrastive(Method):
    """``(1 - alpha) p(c) - alpha max_j cos(h_c, h_j)`` decides between the k likeliest tokens c.

    h are states after the target's last layer; candidates are read in a second pass. The same text
    at any temperature.

    Args:
        k: candidates.
        alpha: weight of the resemblance; 0 is greedy decoding.
    """

    name = "contrastive"
    proposer = "nobody: states that resemble earlier ones resist"
    lossless = False
    draws = False
    constrains = True
    verifier = "greedy"
    hidden_layer = -1

    def __init__(self, k: int = 5, alpha: float = 0.6) -> None:
        if k < 1 or not 0 <= alpha <= 1:
            raise ZooError(f"k {k}, alpha {alpha}: expected 1 or more candidates and a share")
        self.k, self.alpha = k, alpha

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The setting whose text is the target's own."""
        return {"": cls(alpha=0.0)}

    def start(self, run: Run, prompt: Scores) -> None:
        """Keep the prompts' states."""
        counts = [len(sequence) - 1 for sequence in run.sequences]
        hidden = F.normalize(prompt.hidden.float(), dim=-1)
        self._states = [row[:count] for row, count in zip(hidden, counts, strict=True)]

    def propose(self, run: Run) -> Draft:
        """The roots alone."""
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.roots), tokens)

    def score(self, run: Run, draft: Draft) -> Scores:
        """Logits that leave the choice."""
        scores = super().score(run, draft)
        said = run.constrained(scores.logits[:, 0], run.sequences, range(len(run.sequences)))
        probs, tokens = said.float().softmax(-1).topk(min(self.k, said.shape[-1]))
        parents = torch.zeros_like(tokens)
        states = F.normalize(run.target.grow(tokens, parents, -1).hidden.float(), dim=-1)
        roots = F.normalize(scores.hidden.float(), dim=-1)
        chosen = []
        for row, (own, root) in enumerate(zip(self._states, roots, strict=True)):
            self._states[row] = torch.cat([own, root])
            alike = (states[row] @ self._states[row].T).amax(-1)  # [k]
            worth = (1 - self.alpha) * probs[row] - self.alpha * alike
            worth = worth.masked_fill(probs[row] == 0, -torch.inf)
            chosen.append([int(tokens[row, worth.argmax()])])
        return Scores(decided(said[:, None], chosen), None)

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._states = [self._states[row] for row in rows]
