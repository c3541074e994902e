"""Decoding with Hydra heads.

Paper: Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (2024, arXiv 2402.05109).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo.decoding.heads import head_for
from zoo.decoding.levels import LevelDrafter, static_draft
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.tree import Tree
from zoo.decoding.tree_templates import MEDUSA, find_tree
from zoo.decoding.verify import Draft, Verdict
from zoo.models.decoding._hydra_attention import (
    HydraAttentionHead,
    HydraCrossHead,
    HydraEagleHead,
)
from zoo.models.decoding.hydra import HydraHeads
from zoo.models.language._protocol import text_config

Heads = HydraHeads | HydraAttentionHead
KINDS = (HydraHeads, HydraCrossHead, HydraEagleHead)


def build_heads(
    target: nn.Module, settings: Mapping[str, Any], keys: Collection[str] = ()
) -> Heads:
    """Heads of the architecture that the settings name, for :func:`zoo.decoding.heads.head_for`."""
    arch = settings.get("arch", settings.get("hydra_head_arch", "mlp"))
    for kind in (HydraCrossHead, HydraEagleHead):
        if kind.arch == arch:
            return kind.for_target(target, settings, keys)
    return HydraHeads.for_target(target, settings, keys)


@register_method
class Hydra(Method):
    """A static tree, in which each branch is continued by what a head says about that branch.

    Args:
        heads: the trained heads, or the folder or file they are in.
        tree: paths of ranks, or the name of a published tree; those deeper than there are heads are
            left out. By default the authors' tree of 63 nodes.
    """

    name = "hydra"
    proposer = "heads that see the tokens before them"
    needs = (Need("heads", "--heads"),)
    starts_from_prompt = False

    def __init__(
        self,
        heads: Heads | str | Path,
        tree: str | Sequence[Sequence[int]] | Tree = MEDUSA,
    ) -> None:
        self.heads = heads
        self.tree = find_tree(tree)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Fresh heads of every architecture."""
        wide = {"intermediate_size": 2 * text_config(target).hidden_size}
        forms = {
            "": {},
            "prefix": {"arch": "prefix-mlp", "num_layers": 2},
            "ungrounded": {"num_layers": 2, "grounded": False},
            "cross-attn": {"arch": "cross-attn"},
            "eagle-attn": {"arch": "eagle-attn", "hidden_state_offset": 1},
        }
        return {name: cls(build_heads(target, wide | form)) for name, form in forms.items()}

    def load(self, model: nn.Module) -> None:
        """Load the heads."""
        self.heads = head_for(KINDS, build_heads, self.heads, model)
        self.hidden_layer = -1 - self.heads.hidden_state_offset
        depth = self.heads.num_heads if isinstance(self.heads, HydraHeads) else len(self.tree)
        self.tree = self.tree.limited(depth, text_config(model).vocab_size)

    def start(self, run: Run, prompt: Scores) -> None:
        """Read the prompt's states."""
        kind = _Separate if isinstance(self.heads, HydraHeads) else _Recurrent
        self._drafter: LevelDrafter = kind(self.heads, run)
        counts = [len(sequence) - 1 for sequence in run.sequences]
        self._drafter.read([row[:n] for row, n in zip(prompt.hidden, counts, strict=True)])

    def propose(self, run: Run) -> Draft:
        """Depth by depth."""
        return static_draft(run, self._drafter, self.tree)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Go on from the states of the accepted nodes."""
        paths = [[0, *verdict.path] for verdict in verdicts]
        self._drafter.read([scores.hidden[row, path] for row, path in enumerate(paths)])

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._drafter.select(list(rows))


class _Separate(LevelDrafter):
    """A head for each depth, which reads one state and all tokens since."""

    def __init__(self, heads: HydraHeads, run: Run) -> None:
        self.heads, self.run, self.embed = heads, run, run.model.get_input_embeddings()
        self.prefix: AttentionSession | None = None
        if heads.prefix_embeding_layer is not None:
            self.prefix = AttentionSession(heads.prefix_embeding_layer, len(run.sequences))
            run.draft_sessions.append(self.prefix)

    def read(self, states: list[Tensor]) -> None:
        counts = [len(row) for row in states]
        hidden = pad_sequence(states, batch_first=True)
        if self.prefix is not None:
            hidden = self.prefix.read({"inputs_embeds": hidden}, counts).hidden
        self.state = hidden[range(len(counts)), [count - 1 for count in counts]]  # u, [B, d]

    def root(self) -> Tensor:
        roots = torch.tensor(self.run.roots, device=self.state.device)
        self.inputs = torch.cat([self.state, self.embed(roots)], dim=-1)[:, None]  # [B, 1, 2 d]
        self.depth = 0
        return self._logits()

    def deeper(self, tokens: Tensor, above: Tensor) -> Tensor:
        self.inputs = torch.cat([_rows(self.inputs, above), self.embed(tokens)], dim=-1)
        self.depth += 1
        return self._logits()

    def _logits(self) -> Tensor:
        logits, _ = self.heads.head(self.depth, self.inputs)
        return logits[..., : self.run.target.vocab_size]

    def select(self, rows: list[int]) -> None:
        self.state = self.state[rows]


class _Recurrent(LevelDrafter):
    """One head for all depths, which goes on from its own states as if they were the target's."""

    def __init__(self, head: HydraAttentionHead, run: Run) -> None:
        self.head, self.run, self.embed = head, run, run.model.get_input_embeddings()
        self.session = AttentionSession(head, len(run.sequences))
        run.draft_sessions.append(self.session)

    def read(self, states: list[Tensor]) -> None:
        if self.session.parents.shape[1]:  # states that were guessed make room for true ones
            self.session.commit([[] for _ in states])
        self.states = states

    def root(self) -> Tensor:
        counts = [len(row) for row in self.states]
        device = self.states[0].device
        # each state meets the embedding of the token after it
        tokens = pad_sequence(
            [
                torch.tensor(sequence[-count:], device=device)
                for sequence, count in zip(self.run.sequences, counts, strict=True)
            ],
            batch_first=True,
        )
        states = pad_sequence(self.states, batch_first=True)
        hidden = self.session.read(
            {"inputs_embeds": self.embed(tokens), "states": states}, counts
        ).hidden
        self.hidden = hidden[range(len(counts)), [count - 1 for count in counts]][:, None]
        self.places = [-1]
        return self._logits()

    def deeper(self, tokens: Tensor, above: Tensor) -> Tensor:
        first = self.session.parents.shape[1]
        parents = torch.tensor(self.places, device=tokens.device)[above]
        positions, arguments = self.session.place(parents)
        inputs = {"inputs_embeds": self.embed(tokens), "states": _rows(self.hidden, above)}
        if isinstance(self.head, HydraCrossHead):
            # the authors give all guessed states the position of the last true one
            last = torch.tensor(self.session.lengths, device=tokens.device)[:, None] - 1
            inputs["state_positions"] = torch.minimum(positions, last)
        self.hidden = self.session.call(inputs, positions, None, **arguments).hidden
        self.places = list(range(first, first + tokens.shape[1]))
        return self._logits()

    def _logits(self) -> Tensor:
        logits = self.run.model.get_output_embeddings()(self.hidden)
        return logits[..., : self.run.target.vocab_size]

    def select(self, rows: list[int]) -> None:
        self.states = [self.states[row] for row in rows]


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Of ``[B, n, d]`` those at places ``[B, m]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]
