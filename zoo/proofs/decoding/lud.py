"""LUD: which spans a language model is sure of, and what saying them in one pass costs."""

from __future__ import annotations

from functools import cache

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.decoding.methods.lud import LUD
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._tables import unit_table
from zoo.proofs.decoding._unit_language import (
    METHODS,
    PROMPT,
    decode,
    fit,
    loaded,
    settings,
    tokens_of_steps,
    unit_language,
    unit_lm,
)
from zoo.tasks.decoding.lexical_units import LexicalUnitTraining

#: Thresholds of which the speed and the faults are drawn.
BETAS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99)
#: Of the language model: the last token says nearly all that is to be known.
SHAPE = {"layers": 2, "width": 64, "steps": 400}
#: The padding of the made language, which no text holds.
PAD = 0


@cache
def tuned(seed: int, steps: int) -> tuple[nn.Module, float]:
    """The language model after the second training, and its loss on ordinary text."""
    target = str(unit_lm(seed, **SHAPE))
    pl.seed_everything(seed, verbose=False)
    task = LexicalUnitTraining(target, target, pad=PAD, **settings(lr=2e-3))
    scores = fit(task, unit_language(steps, seed))
    return task.eval_model.eval().requires_grad_(False), scores["test/loss"]


class Units(Measurement):
    """A language model of units, of which three tokens in four are certain.

    Measures ``sure_tails`` and ``sure_branches``, the shares of certain and of drawn tokens whose
    probabilities are above 0.9; of decoding with the threshold 0.9 ``tokens_per_step`` and
    ``illegal``, the share of tokens that may not stand where they do; ``illegal_unguarded`` where
    every guess is taken, ``tokens_per_step_untuned`` of the model before the second training, and
    ``perplexity``, its perplexity on ordinary text after that, relative to before.

    Args:
        steps: of the second training, 32 texts each.
    """

    def __init__(self, steps: int = 300) -> None:
        self.steps = steps

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train and decode."""
        base = loaded(unit_lm(seed, **SHAPE))
        model, loss = tuned(seed, self.steps)
        table = unit_table(unit_language(1, seed)).log_law[0].exp()
        legal = table > 1e-6
        sure_tails, sure_branches, before = _certainty(base, seed)

        def illegal(texts: Tensor) -> float:
            last, following = texts[:, PROMPT - 1 : -1], texts[:, PROMPT:]
            return float((~legal[last, following]).double().mean())

        points = []
        for beta in BETAS:
            out = decode(model, LUD(beta=beta - (beta == 0), times=0), seed)
            points.append((out.tokens_per_step, illegal(out.sequences)))
        judged = decode(model, LUD(), seed)
        untuned = decode(base, LUD(pad=PAD), seed)
        axes = Axes("Acceptance by certainty", "tokens of a pass", "illegal tokens")
        return Measured(
            {
                "sure_tails": sure_tails,
                "sure_branches": sure_branches,
                "tokens_per_step": judged.tokens_per_step,
                "illegal": illegal(judged.sequences),
                "illegal_unguarded": points[0][1],
                "tokens_per_step_untuned": untuned.tokens_per_step,
                "perplexity": float(torch.tensor(loss - before).exp()),
            },
            [Curve(axes, *zip(*points, strict=True), "LUD, thresholds"), tokens_of_steps(judged)],
        )


@torch.no_grad()
def _certainty(model: nn.Module, seed: int) -> tuple[float, float, float]:
    """Shares of tails and of branches with a probability above 0.9, and the loss, on test texts."""
    data = unit_language(20, seed)
    data.setup("test")
    sure, tails, losses = [], [], []
    for ids, _ in data.test_dataloader():
        probs = model(input_ids=ids).logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        sure.append(probs > 0.9)
        tails.append(ids[:, 1:] > data.branches)
        losses.append(-probs.log())
    found, is_tail = torch.cat(sure), torch.cat(tails)
    return (
        float(found[is_tail].double().mean()),
        float(found[~is_tail].double().mean()),
        float(torch.cat(losses).mean()),
    )
