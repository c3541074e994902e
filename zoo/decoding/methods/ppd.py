"""Parallel Prompt Decoding: learned embeddings behind every candidate guess what follows it.

Paper: Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference
(2024, arXiv 2405.18628).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.sparse_trees import (
    SlottedTree,
    States,
    best_states,
    fastest_states,
    find_states,
    pass_seconds,
)
from zoo.decoding.tree import PADDING, Tree, batch_parents
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError
from zoo.models.decoding._virtual_tokens import virtual_tokens
from zoo.models.decoding.ppd import PromptTokens
from zoo.models.language._protocol import text_config

#: Trees where nothing was measured.
PUBLISHED = "vicuna_7b"


class _Layout(NamedTuple):
    """The prompt tokens behind a tree of one shape.

    Attributes:
        rows: which row of the prompt embeddings each is.
        parents: the node it stands behind, or of ~k the k-th prompt token.
        places: for each node of the tree its prompt tokens, slot by slot.
    """

    rows: list[int]
    parents: list[int]
    places: list[list[int]]


@register_method
class PPD(Method):
    """A tree from the guesses of the last accepted node, with prompt tokens behind its nodes.

    Args:
        heads: the trained prompt tokens, or the folder or file they are in.
        trees: the trees of all states: the name of a published set (``vicuna_7b``, ``vicuna_13b``,
            ``mobilellama``), or ``{state: [[path, slots], ...]}``. By default they are built from
            the guesses' accuracies that the training measured; without those the first set is
            taken.
        budget: nodes and slots of a pass, for trees that are built; by default what is fastest,
            from times of passes that are measured here.
    """

    name = "ppd"
    proposer = "learned prompt tokens behind every candidate"
    needs = (Need("heads", "--heads"),)

    def __init__(
        self,
        heads: PromptTokens | str | Path,
        trees: str | Mapping[Any, Sequence[Sequence[Any]]] | None = None,
        budget: int | None = None,
    ) -> None:
        self.heads, self.trees, self.budget = heads, trees, budget
        self.states: States | None = None

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Fresh prompt tokens, of one copy and of two with an output layer."""
        accuracy = torch.tensor([[0.4, 0.2, 0.1], [0.3, 0.2, 0.1], [0.2, 0.1, 0.1]])
        trees = {
            state: [
                [[*_ranks(slotted.tree, node)], slotted.slots[node]]
                for node in range(1, len(slotted.tree))
            ]
            for state, slotted in best_states(accuracy, 24).items()
        }
        copies = {
            "virtual_tokens_per_special_token": 2,
            "vt_attention_type": "ensemble",
            "aggregation_type": "adaptive_weighted",
            "use_custom_lm_head": True,
        }
        return {
            "": cls(PromptTokens.for_target(target), trees),
            "copies": cls(PromptTokens.for_target(target, copies), trees),
        }

    def load(self, model: nn.Module) -> None:
        """Load the prompt tokens, and find the trees."""
        self.heads = head_for((PromptTokens,), PromptTokens.for_target, self.heads, model)
        settings, vocabulary = self.heads.config, text_config(model).vocab_size
        if settings["vocab_size"] != vocabulary:
            raise ZooError(
                f"the prompt tokens are for a vocabulary of {settings['vocab_size']}, the target "
                f"has {vocabulary}: they were trained for another one"
            )
        if self.heads.copies > 1 and settings["vt_attention_type"] != "ensemble":
            raise ZooError(
                f"prompt tokens with {self.heads.copies} copies that see each other "
                f"({settings['vt_attention_type']}) do not fit into a tree: expected one copy, or "
                "vt_attention_type ensemble"
            )
        reads = settings["use_custom_lm_head"] or settings["aggregation_type"][0] == "a"
        self.hidden_layer = -1 if reads else None
        if self.states is None:
            self.states = self._find(model)
        most = self.heads.slots
        self._trees = {
            state: slotted.limited(most, vocabulary)
            for state, slotted in self.states.items()
            if state <= most
        }
        self._trees.setdefault(0, SlottedTree(Tree.root(), (most,)))
        self._width = max(1 + max(slotted.tree.ranks) for slotted in self._trees.values())
        self._layouts: dict[int, _Layout] = {}

    def _find(self, model: nn.Module) -> States:
        measured, copies = self.heads.config["accuracy"], self.heads.copies
        if self.trees is not None or measured is None:
            return find_states(self.trees or PUBLISHED, self.heads.slots)
        accuracy = torch.tensor(measured)
        if self.budget is not None:
            return best_states(accuracy, self.budget, copies)
        states, self.budget = fastest_states(accuracy, pass_seconds(model), copies)
        return states

    def start(self, run: Run, prompt: Scores) -> None:
        """Nothing is guessed yet: the first pass reads the root and its prompt tokens."""
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

    def score(self, run: Run, draft: Draft) -> Scores:
        """Let the target read the trees with the prompt tokens behind their nodes."""
        vocabulary, nodes = run.target.vocab_size, draft.tokens.shape[1]
        layouts = [self._layout(slotted) for slotted in self._chosen]
        width = max(len(layout.rows) for layout in layouts)
        tokens, parents = [], []
        for layout in layouts:
            fill = width - len(layout.rows)
            tokens.append([*(vocabulary + row for row in layout.rows), *[0] * fill])
            above = [p if p >= 0 else nodes + ~p for p in layout.parents]
            parents.append([*above, *[PADDING] * fill])
        device = draft.tokens.device
        tree = torch.cat([draft.tokens, torch.tensor(tokens, device=device)], dim=1)
        above = torch.cat([batch_parents(draft.trees), torch.tensor(parents)], dim=1)
        with virtual_tokens(run.model, vocabulary, self.heads.prompt_embeddings):
            scores = run.target.grow(tree, above, self.hidden_layer)
        self._said = Scores(scores.logits[:, nodes:], scores.hidden)
        if scores.hidden is not None:
            self._said = self._said._replace(hidden=scores.hidden[:, nodes:])
        return Scores(scores.logits[:, :nodes], None)

    def _layout(self, slotted: SlottedTree) -> _Layout:
        """Chains of prompt tokens behind the nodes, one for each copy."""
        if id(slotted) not in self._layouts:
            copies = self.heads.copies
            layout = _Layout([], [], [])
            for node, slots in enumerate(slotted.slots):
                first = len(layout.rows)
                for place in range(slots * copies):
                    layout.rows.append(place)
                    before = first + place - copies
                    layout.parents.append(node if place < copies else ~before)
                layout.places.append(list(range(first, len(layout.rows))))
            self._layouts[id(slotted)] = layout
        return self._layouts[id(slotted)]

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Take over what the prompt tokens behind the last accepted node say."""
        for row, verdict in enumerate(verdicts):
            last = verdict.path[-1] if verdict.path else 0
            places = self._layout(self._chosen[row]).places[last]
            logits, states = (t if t is None else t[row, places] for t in self._said)
            if states is None:  # nothing reads them
                states = logits
            said: Tensor = self.heads.guesses(run.model, states, logits)  # [state, V]
            self._guesses[row] = said.topk(self._width, dim=-1).indices

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the guesses of these sequences."""
        self._guesses = [self._guesses[row] for row in rows]


def _ranks(tree: Tree, node: int) -> list[int]:
    """The path of a node, by ranks."""
    return [tree.ranks[n] for n in tree.path(node)[1:]]
