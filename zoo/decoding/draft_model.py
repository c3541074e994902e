"""A second, smaller language model as the proposer: what all two-model methods share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.method import Method, Run
from zoo.decoding.session import Scores, Session, open_session
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_causal_lm


class DraftModelMethod(Method):
    """Keeps a draft model's cache in step with the decided text.

    Args:
        draft: a causal LM with the target's vocabulary, or the folder or hub name of one.
    """

    session: Session

    def __init__(self, draft: nn.Module | str | Path) -> None:
        self.draft = draft

    def load(self, model: nn.Module) -> None:
        """Load the draft model, in the target's precision; one that was given keeps its own."""
        parameter = next(model.parameters())
        if not isinstance(self.draft, nn.Module):
            self.draft = load_causal_lm(self.draft).to(parameter.dtype)
        self.draft.to(parameter.device)
        mine, theirs = self.draft.config.vocab_size, model.config.vocab_size
        if mine != theirs:
            raise ZooError(
                f"the draft model has {mine} tokens, the target {theirs}: both need one vocabulary"
            )

    def start(self, run: Run, prompt: Scores | None) -> None:
        """Open the draft model's cache."""
        self.session = open_session(self.draft, len(run.sequences))
        run.draft_sessions.append(self.session)

    def catch_up(self, run: Run, hidden: int | None = None) -> Scores:
        """Let the draft model read what was decided since; what follows, ``[B, 1, V]``."""
        lengths = self.session.lengths
        return self.session.advance(
            [seq[length:] for seq, length in zip(run.sequences, lengths, strict=True)], hidden
        )


def chain_draft(run: Run, chosen: list[Tensor], probs: list[Tensor], counts: list[int]) -> Draft:
    """Chains of ``counts[b]`` drafted tokens, with the distributions they were drawn from.

    Args:
        chosen: ``[B]`` for each step.
        probs: ``[B, V]`` for each step; empty if they were not drawn.
        counts: how many steps each sequence made before it stopped.
    """
    roots = torch.tensor(run.roots, device=run.target.device)
    tokens = torch.stack([roots, *chosen], dim=1)[:, : max(counts) + 1]
    distributions = None
    if probs:
        # nothing was drawn after the last one
        distributions = torch.stack([*probs, torch.zeros_like(probs[0])], dim=1)
    siblings = "independent" if probs else "top"
    return Draft([Tree.chain(count) for count in counts], tokens, distributions, siblings=siblings)
