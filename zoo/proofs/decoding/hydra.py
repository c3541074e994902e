"""Hydra against Medusa: heads that see the tokens before them, and heads that do not."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl

from zoo.decoding import Tree
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import (
    METHODS,
    decode,
    fit,
    is_greedy_text,
    loaded,
    settings,
    tokens_of_steps,
    unit_language,
    unit_lm,
)
from zoo.tasks.decoding.draft_heads import TokenHeadTraining

HEADS = 4
#: Best accuracies that the language allows, of heads that see the tokens between and of others.
BEST = {"hydra": [0.78125] * HEADS, "medusa": [0.5625, 0.34375, 0.125, 0.125]}


class DraftHeads(Measurement):
    """Heads on a frozen language model of which the best accuracies are known.

    Measures ``acc_head0`` .. ``acc_head3`` (top-1 on held-out text), ``tokens_per_step`` of a chain
    of four drafts at temperature 1, and ``greedy_is_plain``.

    Args:
        head: which heads.
        steps: of training, 32 texts each.
    """

    def __init__(self, head: Literal["medusa", "hydra", "hydra++"], steps: int = 300) -> None:
        self.head, self.steps = head, steps

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train, then decode."""
        target = unit_lm(seed)
        pl.seed_everything(seed, verbose=False)
        task = TokenHeadTraining(str(target), self.head, {"num_heads": HEADS}, **settings(lr=3e-3))
        scores = fit(task, unit_language(self.steps, seed))
        heads, model = task.model["head"].eval(), loaded(target)
        method = self.head.rstrip("+")
        out = decode(model, method, seed, heads=heads, tree=Tree.chain(HEADS))
        accuracy = [scores[f"test/acc_head{head}"] for head in range(HEADS)]
        ahead = list(range(1, HEADS + 1))
        axes = Axes("Best guess of each head", "tokens ahead", "share of right guesses")
        return Measured(
            {f"acc_head{head}": value for head, value in enumerate(accuracy)}
            | {
                "tokens_per_step": out.tokens_per_step,
                "greedy_is_plain": is_greedy_text(model, method, seed, heads=heads),
            },
            [
                Curve(axes, ahead, accuracy),
                Curve(axes, ahead, BEST[method], f"best possible, {method}", "known"),
                tokens_of_steps(out),
            ],
        )
