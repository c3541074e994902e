"""SpecDec++: stopping where a rejection is likely, against the best constant length."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np

from zoo.decoding import Generation
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import (
    METHODS,
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

    def measure(self, seed: int) -> Measured:
        """Simulate."""
        rng = np.random.default_rng(seed)
        easy, state = np.empty(self.tokens + 64, dtype=bool), True
        stay = rng.random(len(easy))
        for i in range(len(easy)):
            easy[i] = state
            state = state if stay[i] < (0.9 if state else 0.6) else not state
        probability = np.where(easy, 0.97, 0.35)
        accepted = rng.random(len(easy)) < probability
        constant = {
            k: self._cost(accepted, probability, lambda n, c, k=k: n >= k) for k in range(1, 21)
        }
        adaptive = {
            float(h): self._cost(accepted, probability, lambda n, c, h=h: n >= 20 or 1 - c > h)
            for h in np.linspace(0.05, 0.95, 19)
        }
        return Measured(
            {"constant": min(constant.values()), "threshold": min(adaptive.values())},
            cost_curves(constant, adaptive),
        )

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

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train the head, decode with every setting."""
        target_folder = unit_lm(seed, **MIXED)
        draft_folder = unit_lm(seed, layers=1, width=64, steps=300, **UNKNOWN)
        pl.seed_everything(seed, verbose=False)
        task = AcceptanceTraining(str(target_folder), draft=str(draft_folder), **settings())
        auc = fit(task, unit_language(self.steps, seed, **MIXED))["test/auc"]
        target, draft = loaded(target_folder), loaded(draft_folder)
        options = {"draft": draft, "head": task.model["head"].eval(), "minimum": 1, "maximum": 16}

        def costs(method: str, **more: object) -> tuple[float, float, float]:
            return self._costs(decode(target, method, seed, language=MIXED, **more))

        constant = {k: costs("speculative", draft=draft, length=k) for k in range(1, 13)}
        adaptive = {
            h: costs("specdec_pp", threshold=h, **options) for h in (0.3, 0.5, 0.7, 0.8, 0.9)
        }
        same = is_greedy_text(target, "specdec_pp", seed, language=MIXED, **options)
        names = ("", "_discarded", "_passes")
        values = {"auc": auc, "greedy_is_plain": same} | {
            f"{policy}{name}": value
            for policy, tried in (("constant", constant), ("adaptive", adaptive))
            for name, value in zip(names, min(tried.values()), strict=True)
        }
        curves = cost_curves(
            {k: cost for k, (cost, *_) in constant.items()},
            {h: cost for h, (cost, *_) in adaptive.items()},
        )
        axes = Axes("Passes and drafts in vain", "drafts in vain a token", "target passes a token")
        for name, tried in (("constant length", constant), ("threshold (SpecDec++)", adaptive)):
            _, vain, passes = zip(*tried.values(), strict=True)
            curves.append(Curve(axes, vain, passes, name, "points"))
        return Measured(values, curves)

    def _costs(self, out: Generation) -> tuple[float, float, float]:
        """Cost, discarded drafts and target passes, per token."""
        tokens = sum(map(len, out.new_tokens))
        passes = sum(map(len, out.accept_lengths))
        counts = out.acceptance
        cost = (counts.drafted * self.cost + passes) / tokens
        return cost, counts.wasted / tokens, passes / tokens


def cost_curves(constant: dict[int, float], adaptive: dict[float, float]) -> list[Curve]:
    """Cost per token by length and by threshold."""
    lengths = Axes("Constant length", "drafts of a round", "cost of a token, target passes")
    thresholds = Axes(
        "Threshold (SpecDec++)", "probability of a rejection", "cost of a token, target passes"
    )
    best = min(constant.values())
    return [
        Curve(lengths, list(constant), list(constant.values()), "constant length"),
        Curve(thresholds, list(adaptive), list(adaptive.values()), "threshold (SpecDec++)"),
        Curve(thresholds, [min(adaptive), max(adaptive)], [best, best], "best constant length"),
    ]
