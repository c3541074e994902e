"""Clover: heads that take in the tokens before them, the same without, and trees of few nodes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.decoding import Tree
from zoo.models.decoding._one_layer import layer_settings
from zoo.models.decoding.clover import CloverHeads
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
BEST = {True: [0.78125] * HEADS, False: [0.5625, 0.34375, 0.125, 0.125]}
#: Trees of four nodes: a chain, siblings, and two by two.
FOUR = {
    "chain": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]],
    "siblings": [[0], [1], [2], [3]],
    "two_by_two": [[0], [1], [0, 0], [1, 0]],
}


class Unconnected(CloverHeads):
    """The same heads, which read zeros where the tokens would be."""

    def augment(self, inputs_embeds: Tensor, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Without the token."""
        return super().augment(torch.zeros_like(inputs_embeds), states, *args, **kwargs)

    def step(self, i: int, state: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Without the token."""
        return super().step(i, state, torch.zeros_like(embeds))


class _Training(TokenHeadTraining):
    """Heads of either kind."""

    def __init__(self, target: str, connected: bool, layers: int, **kwargs: Any) -> None:
        self.connected, self.layers = connected, layers
        super().__init__(target, "clover2", **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        kind = CloverHeads if self.connected else Unconnected
        heads = kind(2, HEADS, self.layers, **layer_settings(target))
        heads.start_from(target)
        return heads


class RegressiveHeads(Measurement):
    """Four heads of Clover-2 on a frozen language model of which the best accuracies are known.

    Measures ``acc_head0`` .. ``acc_head3`` (top-1 on held-out text), ``tokens_per_step`` of a chain
    of four drafts at temperature 1, ``joint`` of a tree of four nodes by joint probability,
    ``chain``, ``siblings`` and ``two_by_two`` of fixed ones, and ``greedy_is_plain``.

    Args:
        connected: False: the heads do not see the tokens.
        layers: augmenting layers.
        steps: of training, 32 texts each.
    """

    def __init__(self, connected: bool = True, layers: int = 1, steps: int = 200) -> None:
        self.connected, self.layers, self.steps = connected, layers, steps

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train, then decode."""
        target = unit_lm(seed)
        pl.seed_everything(seed, verbose=False)
        task = _Training(
            str(target),
            self.connected,
            self.layers,
            data_weight=0.0,
            teacher_weight=1.0,
            **settings(lr=3e-3),
        )
        scores = fit(task, unit_language(self.steps, seed))
        heads, model = task.model["head"].eval(), loaded(target)
        chain = decode(model, "clover", seed, heads=heads, tree=Tree.chain(HEADS))
        values = {"tokens_per_step": chain.tokens_per_step}
        values["joint"] = decode(model, "clover", seed, heads=heads, size=4).tokens_per_step
        for name, paths in FOUR.items():
            out = decode(model, "clover", seed, heads=heads, tree=paths)
            values[name] = out.tokens_per_step
        accuracy = [scores[f"test/acc_head{head}"] for head in range(HEADS)]
        ahead = list(range(1, HEADS + 1))
        axes = Axes("Best guess of each head", "tokens ahead", "share of right guesses")
        best = f"best possible, {'with' if self.connected else 'without'} the tokens between"
        return Measured(
            {f"acc_head{head}": value for head, value in enumerate(accuracy)}
            | values
            | {"greedy_is_plain": is_greedy_text(model, "clover", seed, heads=heads, size=4)},
            [
                Curve(axes, ahead, accuracy),
                Curve(axes, ahead, BEST[self.connected], best, "known"),
                tokens_of_steps(chain),
            ],
        )
