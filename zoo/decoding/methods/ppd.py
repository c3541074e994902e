"""Parallel Prompt Decoding: learned embeddings behind every candidate guess what follows it.

Paper: Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference
(2024, arXiv 2405.18628).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, needing_nothing, register_method
from zoo.decoding.session import Scores
from zoo.decoding.slotted import SlottedMethod, Trees
from zoo.decoding.sparse_trees import SlottedTree
from zoo.decoding.tree import PADDING, batch_parents
from zoo.decoding.verify import Draft
from zoo.errors import ZooError
from zoo.models.decoding._virtual_tokens import virtual_tokens
from zoo.models.decoding.ppd import PromptTokens
from zoo.models.language._protocol import text_config


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
class PPD(SlottedMethod):
    """A tree from the guesses of the last accepted node, with prompt tokens behind its nodes.

    Args:
        heads: the trained prompt tokens, or the folder or file they are in.
        trees, budget: see :class:`SlottedMethod`.
    """

    name = "ppd"
    proposer = "learned prompt tokens behind every candidate"
    needs = (Need("heads", "--heads"),)

    def __init__(
        self,
        heads: PromptTokens | str | Path,
        trees: str | Trees | None = None,
        budget: int | None = None,
    ) -> None:
        super().__init__(trees, budget)
        self.heads = heads

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Fresh prompt tokens, of one copy and of two with an output layer."""
        copies = {
            "virtual_tokens_per_special_token": 2,
            "vt_attention_type": "ensemble",
            "aggregation_type": "adaptive_weighted",
            "use_custom_lm_head": True,
        }
        return {
            "": cls(PromptTokens.for_target(target), cls.trial_trees()),
            "copies": cls(PromptTokens.for_target(target, copies), cls.trial_trees()),
        }

    def load(self, model: nn.Module) -> None:
        """Load the prompt tokens, and find the trees."""
        self.heads = head_for((PromptTokens,), PromptTokens.for_target, self.heads, model)
        settings, vocabulary = self.heads.config, text_config(model).vocab_size
        width = text_config(model).hidden_size
        if settings["hidden_size"] != width:
            raise ZooError(
                f"the prompt tokens are embeddings of {settings['hidden_size']} numbers, the "
                f"target's have {width}: they were trained for another one; take its own, or "
                f"{needing_nothing()}"
            )
        if settings["vocab_size"] != vocabulary:
            raise ZooError(
                f"the prompt tokens are for a vocabulary of {settings['vocab_size']}, the target "
                f"has {vocabulary}: they were trained for another one; take its own, or "
                f"{needing_nothing()}"
            )
        if self.heads.copies > 1 and settings["vt_attention_type"] != "ensemble":
            raise ZooError(
                f"prompt tokens with {self.heads.copies} copies that see each other "
                f"({settings['vt_attention_type']}) do not fit into a tree: expected one copy, or "
                "vt_attention_type ensemble"
            )
        reads = settings["use_custom_lm_head"] or settings["aggregation_type"][0] == "a"
        self.hidden_layer = -1 if reads else None
        self.load_trees(model, self.heads.slots, settings["accuracy"], self.heads.copies)
        self._layouts: dict[int, _Layout] = {}

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

    def slot_logits(self, run: Run, row: int, node: int) -> Tensor:
        """What the prompt tokens behind a node said, the copies of each slot together."""
        places = self._layout(self._chosen[row]).places[node]
        logits, states = (t if t is None else t[row, places] for t in self._said)
        if states is None:  # nothing reads them
            states = logits
        return self.heads.guesses(run.model, states, logits)
