"""What methods share whose pass guesses as well as verifies: every candidate carries slots, each of
which says what may stand at one of the places after it.

The guesses of the node that is accepted last are the next tree, whose shape follows from their
number (:mod:`zoo.decoding.sparse_trees`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding.method import Method, Run
from zoo.decoding.session import Scores
from zoo.decoding.sparse_trees import (
    SlottedTree,
    States,
    best_states,
    fastest_states,
    find_states,
    pass_seconds,
)
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft, Verdict
from zoo.models.language._protocol import text_config

#: Trees where nothing was measured.
PUBLISHED = "vicuna_7b"
#: What every form of slots may be tried on: accuracy of each guess of three slots.
ACCURACY = ((0.4, 0.2, 0.1), (0.3, 0.2, 0.1), (0.2, 0.1, 0.1))

#: For each state the paths of its candidates and the number of slots behind each.
Trees = Mapping[Any, Sequence[Sequence[Any]]]


class SlottedMethod(Method):
    """A tree from the guesses of the last accepted node, with slots behind its nodes.

    Args:
        trees: the trees of all states: the name of a published set (``vicuna_7b``, ``vicuna_13b``,
            ``mobilellama``), or ``{state: [[path, slots], ...]}``. By default they are built from
            the guesses' accuracies that the training measured; without those the first set is
            taken.
        budget: nodes and slots of a pass, for trees that are built; by default what is fastest,
            from times of passes that are measured here.
    """

    def __init__(self, trees: str | Trees | None = None, budget: int | None = None) -> None:
        self.trees, self.budget = trees, budget
        self.states: States | None = None

    @staticmethod
    def trial_trees(budget: int = 24) -> Trees:
        """Small trees for three slots, whose shapes differ from state to state."""
        return {
            state: [
                [[slotted.tree.ranks[n] for n in slotted.tree.path(node)[1:]], slotted.slots[node]]
                for node in range(1, len(slotted.tree))
            ]
            for state, slotted in best_states(torch.tensor(ACCURACY), budget).items()
        }

    def load_trees(
        self,
        model: nn.Module,
        most: int,
        accuracy: Sequence[Sequence[float]] | None,
        copies: int = 1,
    ) -> None:
        """Find the trees.

        Args:
            model: the target.
            most: slots of a root.
            accuracy: of each guess of each slot, where it was measured.
            copies: rows of a pass that one slot takes.
        """
        if self.states is None:
            self.states = self._find(model, most, accuracy, copies)
        vocabulary = text_config(model).vocab_size
        self._trees = {
            state: slotted.limited(most, vocabulary)
            for state, slotted in self.states.items()
            if state <= most
        }
        self._trees.setdefault(0, SlottedTree(Tree.root(), (most,)))
        self._width = max(1 + max(slotted.tree.ranks) for slotted in self._trees.values())

    def _find(
        self,
        model: nn.Module,
        most: int,
        accuracy: Sequence[Sequence[float]] | None,
        copies: int,
    ) -> States:
        if self.trees is not None or accuracy is None:
            return find_states(self.trees or PUBLISHED, most)
        table = torch.tensor(accuracy)
        if self.budget is not None:
            return best_states(table, self.budget, copies)
        states, self.budget = fastest_states(table, pass_seconds(model), copies)
        return states

    def start(self, run: Run, prompt: Scores) -> None:
        """Nothing is guessed yet: the first pass reads the root and its slots."""
        none = torch.empty(0, self._width, dtype=torch.long, device=run.target.device)
        self._guesses = [none] * len(run.roots)  # tokens [state, width] of each sequence

    def propose(self, run: Run) -> Draft:
        """The guesses of the last accepted node, as its state's tree arranges them."""
        states = [len(guesses) for guesses in self._guesses]
        self._chosen = [self._trees[state] for state in states]
        trees = [slotted.tree for slotted in self._chosen]
        tokens = torch.zeros(
            len(trees), max(map(len, trees)), dtype=torch.long, device=run.target.device
        )
        tokens[:, 0] = torch.tensor(run.roots, device=tokens.device)
        for row, (tree, guesses) in enumerate(zip(trees, self._guesses, strict=True)):
            if len(tree) > 1:
                depths = torch.tensor(tree.depths[1:], device=tokens.device) - 1
                ranks = torch.tensor(tree.ranks[1:], device=tokens.device)
                tokens[row, 1 : len(tree)] = guesses[depths, ranks]
        return Draft(trees, tokens)

    @abstractmethod
    def slot_logits(self, run: Run, row: int, node: int) -> Tensor:
        """What the slots behind a node of sequence ``row`` have just said, ``[slots, V]``."""

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Take over what the slots behind the last accepted node say."""
        for row, verdict in enumerate(verdicts):
            last = verdict.path[-1] if verdict.path else 0
            said = self.slot_logits(run, row, last)
            self._guesses[row] = said.topk(self._width, dim=-1).indices

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the guesses of these sequences."""
        self._guesses = [self._guesses[row] for row in rows]
