"""Hidden transfer: pseudo states of later tokens join every candidate in the middle of the pass.

Paper: Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration (2024,
arXiv 2404.12022). No code was published.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.slotted import SlottedMethod, Trees
from zoo.decoding.tree import PADDING, batch_parents
from zoo.decoding.verify import Draft
from zoo.models.decoding.hidden_transfer import HiddenTransfer
from zoo.models.language._protocol import LayeredModel, text_config
from zoo.models.language._split_decoder import SplitDecoder


@register_method
class HiddenTransferDecoding(SlottedMethod):
    """A tree from the guesses of the last accepted node, with pseudo states behind its nodes.

    The lower layers read the candidates alone. Behind them stand, from the layer on where they
    join, the pseudo states: slot by slot, each below the slot before it or below its node. They
    never stay in the cache.

    Args:
        heads: the trained maps, or the folder or file they are in.
        trees, budget: see :class:`SlottedMethod`.
    """

    name = "hidden_transfer"
    proposer = "pseudo states of later tokens, in the upper layers"
    needs = (Need("heads", "--heads"),)
    sessions = AttentionSession

    def __init__(
        self,
        heads: HiddenTransfer | str | Path,
        trees: str | Trees | None = None,
        budget: int | None = None,
    ) -> None:
        super().__init__(trees, budget)
        self.heads = heads

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Fresh maps, two of which join after one layer and one above it."""
        heads = HiddenTransfer.for_target(target, {"layers": [1, 1, 2]})
        return {"": cls(heads, cls.trial_trees())}

    def load(self, model: nn.Module) -> None:
        """Load the maps, and find the trees."""
        self.heads = head_for((HiddenTransfer,), HiddenTransfer.for_target, self.heads, model)
        self.heads.check(model)
        self._target: LayeredModel = SplitDecoder(model)
        self._tokens = text_config(model).vocab_size
        self.load_trees(model, self.heads.slots, self.heads.config["accuracy"])

    def score(self, run: Run, draft: Draft) -> Scores:
        """The lower layers on the candidates, the upper ones on the pseudo states as well."""
        session, depth = run.target, 0
        nodes, count = draft.tokens.shape[1], len(self._target)
        positions, arguments = session.place(batch_parents(draft.trees))
        hidden = self._target.embed(draft.tokens, positions)
        # for each sequence and node where its slots stand, slot by slot
        self._places: list[list[list[int]]] = [
            [[] for _ in slotted.slots] for slotted in self._chosen
        ]
        for slot, until in enumerate((*self.heads.layers, count)):
            if depth < until:
                with session.attention.active():
                    hidden = self._target.run(
                        hidden, depth, until, positions, cache=session.cache, **arguments
                    )
                depth = until
            if slot == self.heads.slots:
                break
            owners, parents = (t.to(hidden.device) for t in self._slot(slot, hidden.shape[1]))
            states = hidden[torch.arange(len(owners), device=hidden.device)[:, None], owners]
            hidden = torch.cat([hidden, self.heads.pseudo(slot, states)], dim=1)
            session.place(parents)
            positions, arguments = session.described(hidden.shape[1])
        session.count(positions.numel())
        self._states = hidden  # [B, nodes and slots, d]
        logits = self._target.logits(hidden[:, :nodes])
        return Scores(logits[..., : session.vocab_size], None)

    def _slot(self, slot: int, first: int) -> tuple[Tensor, Tensor]:
        """The nodes that carry so many slots, and the parents of these, ``[B, n]``; the slots
        stand from place ``first`` on."""
        owners = [
            [node for node, slots in enumerate(slotted.slots) if slots > slot]
            for slotted in self._chosen
        ]
        width = max(map(len, owners))
        parents = []
        for places, nodes in zip(self._places, owners, strict=True):
            parents.append([(places[node] or [node])[-1] for node in nodes])
            parents[-1] += [PADDING] * (width - len(nodes))
            for place, node in enumerate(nodes, start=first):
                places[node].append(place)
        padded = [[*nodes, *[0] * (width - len(nodes))] for nodes in owners]
        return torch.tensor(padded), torch.tensor(parents)

    def slot_logits(self, run: Run, row: int, node: int) -> Tensor:
        """What the output layer reads from the pseudo states behind a node."""
        states = self._states[row, self._places[row][node]]
        return self._target.logits(states[None])[0, :, : self._tokens]
