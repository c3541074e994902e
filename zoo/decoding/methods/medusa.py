"""Decoding with Medusa heads.

Paper: Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (2024, arXiv
2401.10774).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, accepted_hidden, register_method
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.tree_templates import MEDUSA, find_tree
from zoo.decoding.verify import Draft, Verdict
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.language._protocol import text_config


@register_method
class Medusa(Method):
    """A static tree from the top tokens of each head.

    Args:
        heads: the trained heads, or the folder or file they are in.
        tree: paths of ranks, or the name of a published tree; those deeper than there are heads are
            left out. By default the authors' tree of 63 nodes.
    """

    name = "medusa"
    proposer = "heads, each on its own"
    needs = (Need("heads", "--heads"),)
    starts_from_prompt = False
    hidden_layer = -1

    def __init__(
        self,
        heads: MedusaHeads | str | Path,
        tree: str | Sequence[Sequence[int]] | Tree = MEDUSA,
    ) -> None:
        self.heads = heads
        self.tree = find_tree(tree)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Four fresh heads."""
        return {"": cls(MedusaHeads.for_target(target, {"num_heads": 4}))}

    def load(self, model: nn.Module) -> None:
        """Load the heads."""
        self.heads = head_for((MedusaHeads,), MedusaHeads.for_target, self.heads, model)
        self.tree = self.tree.limited(self.heads.num_heads, text_config(model).vocab_size)

    def start(self, run: Run, prompt: Scores) -> None:
        """Remember the state before the roots."""
        last = [len(sequence) - 2 for sequence in run.sequences]
        self._hidden = prompt.hidden[range(len(last)), last]  # [B, d]

    def propose(self, run: Run) -> Draft:
        """The top tokens of all heads, arranged as the tree says."""
        logits = self.heads(self._hidden)[..., : run.target.vocab_size]  # [K, B, V]
        best = logits.topk(max(self.tree.ranks) + 1, dim=-1).indices.transpose(
            0, 1
        )  # [B, K, width]
        roots = torch.tensor(run.roots, device=best.device)[:, None]
        heads = torch.tensor(self.tree.depths[1:], device=best.device) - 1
        ranks = torch.tensor(self.tree.ranks[1:], device=best.device)
        tokens = torch.cat([roots, best[:, heads, ranks]], dim=1)
        return Draft([self.tree] * len(tokens), tokens)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Go on from the state of the last accepted node."""
        self._hidden: Tensor = accepted_hidden(scores.hidden, verdicts)

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._hidden = self._hidden[list(rows)]
