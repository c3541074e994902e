"""PPD: what trained prompt tokens foretell, and what trees that follow the state are worth."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.decoding.sparse_trees import (
    States,
    best_states,
    expected_accepted,
    objective,
)
from zoo.decoding.tree import best_static_tree
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
from zoo.tasks.decoding.prompt_tokens import PromptTokenTraining

#: Texts whose tokens are fixed by those 16 before.
LANGUAGE = {"period": 16, "symbols": 8}


class Prompts(Measurement):
    """Prompt tokens for a frozen language model of texts that repeat a block.

    Measures ``agree_head0`` to ``agree_head2``, how often a slot's best guess is the target's own
    next token from the second block on, ``tokens_per_step`` of greedy decoding behind two blocks,
    and ``greedy_is_plain``.

    Args:
        steps: of training, 32 texts each; 0 leaves the prompt tokens random.
        budget: candidates and slots of a pass.
    """

    def __init__(self, steps: int = 100, budget: int = 24) -> None:
        self.steps, self.budget = steps, budget

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train, then decode."""
        target = unit_lm(seed, **LANGUAGE)
        pl.seed_everything(seed, verbose=False)
        task = PromptTokenTraining(str(target), **settings(lr=1e-2))
        data = unit_language(self.steps or 20, seed, **LANGUAGE)
        scores = fit(task, data, epochs=int(self.steps > 0))
        heads, model = task.model["head"].eval(), loaded(target)
        options = {"heads": heads, "budget": self.budget}
        out = decode(model, "ppd", seed, 8, 0.0, LANGUAGE, **options)
        agree = [scores[f"test/agree_head{slot}"] for slot in range(heads.slots)]
        axes = Axes("Best guess of each slot", "tokens ahead", "share of the target's own tokens")
        return Measured(
            {f"agree_head{slot}": value for slot, value in enumerate(agree)}
            | {
                "tokens_per_step": out.tokens_per_step,
                "greedy_is_plain": is_greedy_text(model, "ppd", seed, LANGUAGE, **options),
            },
            [Curve(axes, [1, 2, 3], agree), tokens_of_steps(out)],
        )


class Trees(Measurement):
    """The optimiser of trees, on random tables of accuracies of three slots.

    Measures how far its objective is from a simulation, relative to that and at worst
    (``worst_error``), and the tokens of a pass relative to one fixed tree of the same size, whose
    nodes all carry three slots: ``mean_gain``, ``worst_gain``.

    Args:
        tables: how many.
        budget: candidates and slots of a pass.
        passes: of a simulation.
    """

    def __init__(self, tables: int = 6, budget: int = 48, passes: int = 50000) -> None:
        self.tables, self.budget, self.passes = tables, budget, passes

    def measure(self, seed: int) -> Measured:
        """Build and simulate."""
        generator = torch.Generator().manual_seed(seed)
        errors, gains, known, found = [], [], [], []
        for _ in range(self.tables):
            accuracy = _table(generator)
            states = best_states(accuracy, self.budget)
            known.append(objective(states, accuracy))
            found.append(_simulate(states, accuracy, self.passes, generator))
            errors.append(abs(known[-1] / found[-1] - 1))
            fixed = best_static_tree(accuracy, self.budget // (1 + len(accuracy)))
            gains.append((1 + known[-1]) / (1 + expected_accepted(fixed, accuracy)))
        axes = Axes("Accepted drafts of a pass", "foretold", "simulated")
        return Measured(
            {
                "worst_error": max(errors),
                "worst_gain": min(gains),
                "mean_gain": sum(gains) / len(gains),
            },
            [
                Curve(axes, known, found, "tables", "points"),
                Curve(axes, [min(known), max(known)], [min(known), max(known)], "equal", "known"),
            ],
        )


def _table(generator: torch.Generator, slots: int = 3, ranks: int = 10) -> Tensor:
    """Accuracies ``[slots, ranks]`` that fall with rank and slot, as measured ones do."""
    shares = torch.rand(slots, ranks, generator=generator).sort(dim=1, descending=True).values ** 4
    total = 0.5 + 0.45 * torch.rand(1, generator=generator)
    decay = 0.6 + 0.3 * torch.rand(1, generator=generator)
    return total * decay ** torch.arange(slots)[:, None] * shares / shares.sum(1, keepdim=True)


def _simulate(states: States, accuracy: Tensor, passes: int, generator: torch.Generator) -> float:
    """Mean accepted drafts where the right token of each slot has a rank by chance, or none."""
    ranks = accuracy.shape[1]
    full = torch.cat([accuracy, 1 - accuracy.sum(1, keepdim=True)], dim=1)
    drawn = torch.multinomial(full, passes, replacement=True, generator=generator).T.tolist()
    state, accepted = max(states), 0
    for right in drawn:
        slotted, node = states[state], 0
        for rank in right[:state]:
            children = slotted.tree.children[node]
            below = [child for child in children if slotted.tree.ranks[child] == rank < ranks]
            if not below:
                break
            node, accepted = below[0], accepted + 1
        state = slotted.slots[node]
    return accepted / passes
