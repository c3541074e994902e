"""Kangaroo: both early exits, and the adapter between them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import lightning.pytorch as pl

from zoo.decoding.methods.kangaroo import Kangaroo
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import (
    METHODS,
    PROMPT,
    decode,
    fit,
    is_greedy_text,
    loaded,
    settings,
    tokens_of_steps,
    unit_language,
    unit_lm,
)
from zoo.tasks.decoding.draft_heads import AdapterTraining

#: Five determined tokens that are written with symbols which all branches share: one layer does not
#: foretell them as well as six do.
LANGUAGE = {"tail": 5, "shared_tail": True}
#: gamma, most drafted tokens of a round: more than are determined in a row.
MOST = 9


def target(seed: int) -> Path:
    """Folder of the language model."""
    return unit_lm(seed, layers=6, **LANGUAGE)


@cache
def trained_adapter(exit_layer: int, steps: int, seed: int) -> KangarooAdapter:
    """An adapter for the target."""
    pl.seed_everything(seed, verbose=False)
    task = AdapterTraining(str(target(seed)), exit_layer, **settings(lr=3e-3))
    fit(task, unit_language(steps, seed, **LANGUAGE))
    return task.model["head"].eval()


class EarlyExits(Measurement):
    """A six-layer language model that drafts with its first layers.

    Measures ``tokens_per_step`` at temperature 1, ``wasted`` drafts for each accepted one,
    ``shallow_calls`` (passes of a token through the shallow layers, divided by the tokens that were
    verified: 1 if none went twice), and ``greedy_is_plain``.

    Args:
        adapter: False drafts with the target's own norm on the shallow states.
        threshold: eta of the second exit; 0 never exits.
        exit_layer: number of shallow layers.
        steps: of the adapter's training.
    """

    def __init__(
        self,
        adapter: bool = True,
        threshold: float = 0.6,
        exit_layer: int = 1,
        steps: int = 300,
    ) -> None:
        self.adapter, self.threshold = adapter, threshold
        self.exit_layer, self.steps = exit_layer, steps

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train the adapter, then decode."""
        adapter = trained_adapter(self.exit_layer, self.steps, seed) if self.adapter else None
        model = loaded(target(seed))
        method = Kangaroo(adapter, self.exit_layer, self.threshold, steps=MOST)
        out = decode(model, method, seed, language=LANGUAGE)
        prompt_tokens = out.sequences.shape[0] * PROMPT
        counts = out.acceptance
        shallow = method.shallow_tokens / (out.target_tokens - prompt_tokens)
        wasted = counts.wasted / max(counts.accepted, 1)
        axes = Axes("Drafts in vain", "tokens of a pass, mean", "drafts in vain for each one kept")
        return Measured(
            {
                "tokens_per_step": out.tokens_per_step,
                "wasted": wasted,
                "shallow_calls": shallow,
                "greedy_is_plain": is_greedy_text(model, method, seed, language=LANGUAGE),
            },
            [tokens_of_steps(out), Curve(axes, [out.tokens_per_step], [wasted], style="points")],
        )
