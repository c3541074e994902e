"""Hydra against Medusa: heads that see the tokens before them, and heads that do not."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl

from zoo.decoding import Tree
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
from zoo.tasks.decoding.draft_heads import TokenHeadTraining

HEADS = 4


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

    def measure(self) -> dict[str, float]:
        """Train, then decode."""
        target = unit_lm()
        pl.seed_everything(0, verbose=False)
        task = TokenHeadTraining(str(target), self.head, {"num_heads": HEADS}, **settings(lr=3e-3))
        scores = fit(task, unit_language(self.steps))
        heads, model = task.model["head"].eval(), loaded(target)
        method = self.head.rstrip("+")
        out = decode(model, method, heads=heads, tree=Tree.chain(HEADS))
        measured = {key.removeprefix("test/"): value for key, value in scores.items()}
        return {key: measured[key] for key in sorted(measured) if key.startswith("acc_")} | {
            "tokens_per_step": out.tokens_per_step,
            "greedy_is_plain": is_greedy_text(model, method, heads=heads),
        }
