"""SpecTr: how often k candidates can be kept, by rule; and how many tokens that gives."""

from __future__ import annotations

import torch

from zoo.decoding.optimal_transport import (
    k_seq,
    optimal_acceptance,
    recursive_rejection_acceptance,
)
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import (
    METHODS,
    decode,
    is_greedy_text,
    loaded,
    tokens_of_steps,
    unit_lm,
)


class Acceptance(Measurement):
    """Probability that one of k candidates is kept, over random pairs of distributions.

    Measures ``k_seq``, ``recursive`` (the rule of SpecInfer), ``optimum``, the ``worst`` ratio of
    k-SEQ to the optimum and the best one, and the largest violation of the target's distribution
    ``error``.

    Args:
        k: number of candidates.
        pairs: how many pairs, each of ten tokens drawn from a Dirichlet distribution.
    """

    def __init__(self, k: int, pairs: int = 60) -> None:
        self.k, self.pairs = k, pairs

    def measure(self, seed: int) -> Measured:
        """Evaluate the rules; nothing is sampled but the pairs."""
        torch.manual_seed(seed)
        law = torch.distributions.Dirichlet(torch.full((10,), 0.5, dtype=torch.float64))
        q, p = law.sample((self.pairs,)), law.sample((self.pairs,))
        rule = k_seq(q, p, self.k)
        best = torch.tensor([optimal_acceptance(a, b, self.k) for a, b in zip(q, p, strict=True)])
        kept = torch.minimum(q, p / rule.rho[:, None])
        first = kept * (rule.acceptance / kept.sum(-1))[:, None]
        total = first + rule.residual * (1 - rule.acceptance)[:, None]
        ratio = rule.acceptance / best
        rules = {
            "k-SEQ (SpecTr)": float(rule.acceptance.mean()),
            "in turn (SpecInfer)": float(recursive_rejection_acceptance(q, p, self.k).mean()),
            "optimum": float(best.mean()),
        }
        k_seq_, recursive, optimum = rules.values()
        axes = Axes("Acceptance by rule", "drafts k", "probability that one of them is kept", "x")
        return Measured(
            {
                "k_seq": k_seq_,
                "recursive": recursive,
                "optimum": optimum,
                "worst": float(ratio.min()),
                "best": float(ratio.max()),
                "error": float((total - p).abs().max()),
            },
            [Curve(axes, [self.k], [value], name) for name, value in rules.items()],
        )


class Blocks(Measurement):
    """Tokens per target pass of a toy target with its own early checkpoint as the draft.

    Measures ``tokens_per_step`` at temperature 1, and ``greedy_is_plain``.

    Args:
        drafts: K; 1 is ordinary speculative sampling.
        length: L.
    """

    def __init__(self, drafts: int, length: int = 4) -> None:
        self.drafts, self.length = drafts, length

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Decode."""
        target = loaded(unit_lm(seed))
        options = {
            "draft": loaded(unit_lm(seed, layers=1, width=32, steps=60)),
            "drafts": self.drafts,
            "length": self.length,
        }
        out = decode(target, "spectr", seed, **options)
        return Measured(
            {
                "tokens_per_step": out.tokens_per_step,
                "greedy_is_plain": is_greedy_text(target, "spectr", seed, **options),
            },
            [tokens_of_steps(out)],
        )
