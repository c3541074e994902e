"""SpecDec++: speculative sampling that stops drafting when a rejection is likely.

Paper: SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths (2024, arXiv
2405.19715).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from zoo.decoding.draft_model import DRAFT, DraftModelMethod, chain_draft, trial_draft
from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.stop_rules import Constant, PredictedRejection, StopRule
from zoo.decoding.verify import Draft, Verdict
from zoo.models.decoding.specdec_pp import AcceptanceHead
from zoo.models.language._protocol import text_config


@register_method
class Speculative(DraftModelMethod):
    """Speculative sampling with a draft model (arXiv 2211.17192): one chain, a constant length.

    Args:
        draft: see :class:`DraftModelMethod`.
        length: drafted tokens of a round.
    """

    name = "speculative"
    proposer = "one draft of a small model"
    verifier = "rejection"

    def __init__(self, draft: nn.Module | str | Path, length: int = 4) -> None:
        super().__init__(draft)
        self.rule: StopRule = Constant(length)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """A copy of the target as its draft model."""
        return {"": cls(trial_draft(target), length=3)}

    def propose(self, run: Run) -> Draft:
        """Draft token by token until the rule has stopped every sequence."""
        batch, device, sampler = len(run.roots), run.target.device, run.sampler
        scores = self.catch_up(run, hidden=-1)
        # of the rows' last real tokens; the roots are decided, so their states are not asked for
        hidden = scores.hidden[:, -1]
        self.rule.begin(batch, device)
        counts, chosen, probs = [0] * batch, [], []
        running = torch.ones(batch, dtype=torch.bool, device=device)
        stop = torch.tensor(sorted(run.stop_tokens), dtype=torch.long, device=device)
        while True:
            q = sampler.probs(scores.logits[:, 0])  # [B, V]
            token = sampler.draw(q)
            chosen.append(token)
            if not sampler.greedy:
                probs.append(q)
            counts = [n + int(on) for n, on in zip(counts, running.tolist(), strict=True)]
            stops = self.rule.stops(len(chosen), q.amax(-1), hidden) | torch.isin(token, stop)
            running = running & ~stops
            if not running.any():
                self._read = len(chosen) - 1
                return chain_draft(run, chosen, probs, counts)
            parents = torch.full((batch, 1), len(chosen) - 2, device=device)
            scores = self.grow(token[:, None], parents, hidden=-1)
            hidden = scores.hidden[:, 0]

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Keep what the draft model has read of the accepted tokens."""
        self.session.commit([range(min(len(verdict.path), self._read)) for verdict in verdicts])


@register_method
class SpecDecPP(Speculative):
    """Speculative sampling whose length follows an acceptance head.

    Args:
        draft: see :class:`DraftModelMethod`.
        head: the trained acceptance head, or the folder or file it is in.
        threshold: stop when a rejection is likelier than this.
        minimum, maximum: bounds of a round's length.
    """

    name = "specdec_pp"
    proposer = "one draft of a length that follows a head"
    needs = (DRAFT, Need("head", "--heads"))

    def __init__(
        self,
        draft: nn.Module | str | Path,
        head: AcceptanceHead | str | Path,
        threshold: float = 0.7,
        minimum: int = 2,
        maximum: int = 20,
    ) -> None:
        super().__init__(draft, maximum)
        self.head = head
        self._bounds = (threshold, minimum, maximum)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """A copy of the target as its draft model, with a fresh head."""
        head = AcceptanceHead(text_config(target).hidden_size, 2)
        return {"": cls(trial_draft(target), head, threshold=0.5)}

    def load(self, model: nn.Module) -> None:
        """Load the draft model and its head."""
        super().load(model)
        self.head = head_for((AcceptanceHead,), AcceptanceHead.for_target, self.head, self.draft)
        self.rule = PredictedRejection(self.head, *self._bounds)
