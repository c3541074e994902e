"""Hidden transfer: pseudo states that join below some layers, and those that join below none."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from zoo.decoding import Draft, Run, Verdict
from zoo.decoding.session import Scores
from zoo.models.decoding.hidden_transfer import HiddenTransfer
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
from zoo.tasks.decoding.hidden_transfer import HiddenTransferTraining

#: Texts whose tokens are fixed by those 16 before: a place that is not written yet can be looked up
#: by whoever knows its position, and a state of another place does not hold what stands there.
LANGUAGE = {"period": 16, "symbols": 8}
SLOTS = 3


class Transfers(Measurement):
    """Three maps after each layer of a frozen language model, the last one included.

    After the last layer the maps are linear heads of as many parameters, whose states pass no
    layer any more. Measures, of the earlier layer whose worst slot is best, ``best_layer``,
    ``best_worst_slot`` and ``best_slot3``, how often its guesses are the target's own next tokens
    from the second block on; ``last_slot3``, the third slot of the last layer; and, of decoding
    with the best, ``tokens_per_step``, ``greedy_is_plain`` and ``gap``, the largest difference of a
    root's logits from those of the model alone.

    Args:
        steps: of each training, 32 texts each.
        budget: candidates and slots of a pass.
    """

    def __init__(self, steps: int = 100, budget: int = 24) -> None:
        self.steps, self.budget = steps, budget

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train after each layer, then decode."""
        target = unit_lm(seed, **LANGUAGE)
        model = loaded(target)
        count = model.config.num_hidden_layers
        agree: dict[int, list[float]] = {}
        heads: dict[int, HiddenTransfer] = {}
        for layer in range(1, count + 1):
            pl.seed_everything(seed, verbose=False)
            task = HiddenTransferTraining(
                str(target), {"layers": [layer] * SLOTS}, **settings(lr=3e-3)
            )
            scores = fit(task, unit_language(self.steps, seed, **LANGUAGE))
            agree[layer] = [scores[f"test/agree_head{slot}"] for slot in range(SLOTS)]
            heads[layer] = task.model["head"].eval()
        best = max(range(1, count), key=lambda layer: min(agree[layer]))
        options = {"heads": heads[best], "budget": self.budget}
        found: list[tuple[list[int], torch.Tensor]] = []

        def on_step(run: Run, draft: Draft, scores: Scores, verdicts: list[Verdict]) -> None:
            found.append((list(run.sequences[0]), scores.logits[0, 0]))

        out = decode(model, "hidden_transfer", seed, 8, 0.0, LANGUAGE, on_step=on_step, **options)
        gap = max(
            float((model(input_ids=torch.tensor([text])).logits[0, -1] - logits).abs().max())
            for text, logits in found[:8]
        )
        axes = Axes("Best guess of each slot", "tokens ahead", "share of the target's own tokens")
        curves: list[Any] = [
            Curve(axes, [1, 2, 3], values, f"after layer {layer}" + " (last)" * (layer == count))
            for layer, values in agree.items()
        ]
        return Measured(
            {
                "best_layer": best,
                "best_worst_slot": min(agree[best]),
                "best_slot3": agree[best][-1],
                "last_slot3": agree[count][-1],
                "tokens_per_step": out.tokens_per_step,
                "greedy_is_plain": is_greedy_text(
                    model, "hidden_transfer", seed, LANGUAGE, **options
                ),
                "gap": gap,
            },
            [*curves, tokens_of_steps(out)],
        )
