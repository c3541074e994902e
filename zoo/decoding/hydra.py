"""Decoding with Hydra heads.

Paper: Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (2024, arXiv 2402.05109).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Run, accepted_hidden, register_method
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.tree import Tree
from zoo.decoding.tree_templates import MEDUSA
from zoo.decoding.verify import Draft, Verdict
from zoo.models.decoding.hydra import HydraHeads


@register_method
class Hydra(Method):
    """A static tree, in which each branch is continued by what a head says about that branch.

    Args:
        heads: the trained heads, or the folder or file they are in.
        tree: paths of ranks; those deeper than there are heads are left out. By default the
            authors' tree of 63 nodes.
    """

    name = "hydra"
    starts_from_prompt = False
    hidden_layer = -1

    def __init__(
        self,
        heads: HydraHeads | str | Path,
        tree: Sequence[Sequence[int]] | Tree = MEDUSA,
    ) -> None:
        self.heads = heads
        self.tree = tree if isinstance(tree, Tree) else Tree.from_choices(tree)

    def start(self, run: Run, prompt: Scores | None) -> None:
        """Load the heads; Hydra++ reads the prompt's states."""
        self.heads = head_for(HydraHeads, self.heads, run.model)
        self.tree = self.tree.limited(self.heads.num_heads, run.model.config.vocab_size)
        counts = [len(sequence) - 1 for sequence in run.sequences]
        self._prefix: AttentionSession | None = None
        if self.heads.prefix_embeding_layer is not None:
            self._prefix = AttentionSession(self.heads.prefix_embeding_layer, len(counts))
            run.draft_sessions.append(self._prefix)
        self._state = self._read(prompt.hidden, counts)  # u, [B, d]

    def _read(self, hidden: Tensor, counts: list[int]) -> Tensor:
        """States ``[B, n, d]``, of which each row's first ``counts`` are new -> u ``[B, d]``."""
        if self._prefix is not None:
            inputs = {"inputs_embeds": hidden[:, : max(counts)]}
            hidden = self._prefix.read(inputs, counts).hidden
        return hidden[range(len(counts)), [count - 1 for count in counts]]

    def propose(self, run: Run) -> Draft:
        """Depth by depth: one head call for all nodes that have children."""
        embed = run.model.get_input_embeddings()
        tree = self.tree
        tokens = torch.zeros(len(run.roots), len(tree), dtype=torch.long, device=run.target.device)
        tokens[:, 0] = torch.tensor(run.roots, device=tokens.device)
        inputs = torch.cat([self._state, embed(tokens[:, 0])], dim=-1)[:, None]  # [B, 1, 2d]
        expanded = [0]
        for depth, nodes in enumerate(tree.levels):
            logits, _ = self.heads.head(depth, inputs)  # [B, expanded, V]
            best = logits.topk(max(tree.ranks[node] for node in nodes) + 1, dim=-1).indices
            parents = [expanded.index(tree.parents[node]) for node in nodes]
            tokens[:, list(nodes)] = best[:, parents, [tree.ranks[node] for node in nodes]]
            if depth + 1 == len(tree.levels):
                break
            expanded = [node for node in nodes if tree.children[node]]
            above = [parents[nodes.index(node)] for node in expanded]
            inputs = torch.cat([inputs[:, above], embed(tokens[:, expanded])], dim=-1)
        return Draft([tree] * len(tokens), tokens)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Go on from the last accepted node; Hydra++ reads the states of all accepted ones."""
        if self._prefix is None:
            self._state = accepted_hidden(scores.hidden, verdicts)
            return
        paths = [[0, *verdict.path] for verdict in verdicts]
        states = [scores.hidden[row, path] for row, path in enumerate(paths)]
        padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        self._state = self._read(padded, [len(path) for path in paths])

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._state = self._state[list(rows)]
