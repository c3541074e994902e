"""SpecDec++: stopping where a rejection is likely, against the best constant length."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np

from zoo.decoding import Generation
from zoo.proofs.base import Measurement
from zoo.proofs.decoding._unit_language import (
    decode,
    fit,
    is_greedy_text,
    loaded,
    settings,
    unit_language,
    unit_lm,
)
from zoo.tasks.decoding.draft_models import AcceptanceTraining

#: A quarter of the text follows a second code, which the draft model never saw: noise stood there.
MIXED = {"noisy_share": 0.25, "second_code": True}
UNKNOWN = {"noisy_share": 0.25}


class KnownProbabilities(Measurement):
    """The policy without a network: acceptance follows a hidden chain of easy and hard stretches.

    A drafted token is accepted with probability 0.97 in the easy state (left with 0.1) and 0.35 in
    the hard one (left with 0.4). Measures the cost per token ``(drafts * c + target passes) /
    tokens`` of the best ``constant`` length of 1 to 20, and of the best ``threshold`` on the
    probability that a token of the round is rejected.

    Args:
        cost: c, of a draft relative to a target pass.
        tokens: length of the simulation.
    """

    def __init__(self, cost: float = 0.1, tokens: int = 40000) -> None:
        self.cost, self.tokens = cost, tokens

    def measure(self) -> dict[str, float]:
        """Simulate."""
        rng = np.random.default_rng(0)
        easy, state = np.empty(self.tokens + 64, dtype=bool), True
        stay = rng.random(len(easy))
        for i in range(len(easy)):
            easy[i] = state
            state = state if stay[i] < (0.9 if state else 0.6) else not state
        probability = np.where(easy, 0.97, 0.35)
        accepted = rng.random(len(easy)) < probability
        constant = min(
            self._cost(accepted, probability, lambda n, c, k=k: n >= k) for k in range(1, 21)
        )
        adaptive = min(
            self._cost(accepted, probability, lambda n, c, h=h: n >= 20 or 1 - c > h)
            for h in np.linspace(0.05, 0.95, 19)
        )
        return {"constant": constant, "threshold": adaptive}

    def _cost(self, accepted, probability, stops) -> float:
        position, drafts, passes = 0, 0, 0
        while position < self.tokens:
            count, chance = 0, 1.0
            while True:
                chance *= probability[position + count]
                count += 1
                if stops(count, chance) or count >= 60:
                    break
            taken = 0
            while taken < count and accepted[position + taken]:
                taken += 1
            position += taken + 1
            drafts += count
            passes += 1
        return (drafts * self.cost + passes) / position


class LearnedHead(Measurement):
    """A trained head, and a draft of one layer that knows one of the target's two codes.

    Measures the head's ``auc``; cost per token as in :class:`KnownProbabilities` of the best
    constant length (``constant``) and of the head at its best threshold (``adaptive``); the share
    of ``discarded`` drafts of both (``constant_discarded``, ``adaptive_discarded``, per token),
    target passes per token (``constant_passes``, ``adaptive_passes``), and ``greedy_is_plain``.

    Args:
        cost: c.
        steps: of the head's training.
    """

    def __init__(self, cost: float = 0.1, steps: int = 300) -> None:
        self.cost, self.steps = cost, steps

    def measure(self) -> dict[str, float]:
        """Train the head, decode with every setting."""
        target_folder = unit_lm(**MIXED)
        draft_folder = unit_lm(layers=1, width=64, steps=300, **UNKNOWN)
        pl.seed_everything(0, verbose=False)
        task = AcceptanceTraining(str(target_folder), draft=str(draft_folder), **settings())
        auc = fit(task, unit_language(self.steps, **MIXED))["test/auc"]
        target, draft = loaded(target_folder), loaded(draft_folder)
        options = {"draft": draft, "head": task.model["head"].eval(), "minimum": 1, "maximum": 16}
        constant = min(
            self._costs(decode(target, "speculative", language=MIXED, draft=draft, length=k))
            for k in range(1, 13)
        )
        adaptive = min(
            self._costs(decode(target, "specdec_pp", language=MIXED, threshold=h, **options))
            for h in (0.3, 0.5, 0.7, 0.8, 0.9)
        )
        same = is_greedy_text(target, "specdec_pp", language=MIXED, **options)
        names = ("", "_discarded", "_passes")
        return {"auc": auc, "greedy_is_plain": same} | {
            f"{policy}{name}": value
            for policy, values in (("constant", constant), ("adaptive", adaptive))
            for name, value in zip(names, values, strict=True)
        }

    def _costs(self, out: Generation) -> tuple[float, float, float]:
        """Cost, discarded drafts and target passes, per token."""
        tokens = sum(map(len, out.new_tokens))
        passes = sum(map(len, out.accept_lengths))
        counts = out.acceptance
        cost = (counts.drafted * self.cost + passes) / tokens
        return cost, counts.wasted / tokens, passes / tokens
