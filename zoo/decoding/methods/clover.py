"""Decoding with Clover's heads.

Papers: Clover: Regressive Lightweight Speculative Decoding with Sequential Knowledge (2024, arXiv
2405.00263) and Clover-2 (arXiv 2408.00264).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zoo.decoding.heads import head_for
from zoo.decoding.levels import LevelDrafter, joint_draft, static_draft
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.tree import Tree
from zoo.decoding.tree_templates import EAGLE, find_tree
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError
from zoo.models.decoding.clover import CloverHeads
from zoo.models.language._protocol import text_config

#: Candidates of a pass in the first paper, which is about large batches.
FEW = 4


@register_method
class Clover(Method):
    """A tree whose branches are continued by heads that have taken in the branch.

    Args:
        heads: the trained heads, or the folder or file they are in.
        tree: paths of ranks, or the name of a published tree; those deeper than there are heads are
            left out. By default EAGLE's tree of 25 nodes for Clover-2.
        size: grow a tree of so many nodes by joint probability instead; by default 4 for Clover.
        top_p, ratio: of such trees; see :func:`zoo.decoding.levels.joint_draft`.
    """

    name = "clover"
    proposer = "heads with a state that takes in the tokens before them"
    needs = (Need("heads", "--heads"),)
    sessions = AttentionSession
    starts_from_prompt = False

    def __init__(
        self,
        heads: CloverHeads | str | Path,
        tree: str | Sequence[Sequence[int]] | Tree | None = None,
        size: int | None = None,
        top_p: float = 0.95,
        ratio: float = 0.25,
    ) -> None:
        if tree is not None and size is not None:
            raise ZooError(f"tree and size {size} were given: expected one of them at most")
        if (size is not None and size < 1) or not 0 < top_p <= 1 or not 0 <= ratio <= 1:
            raise ZooError(
                f"size {size}, top_p {top_p}, ratio {ratio}: expected a size of 1 or more, top_p "
                "above 0 and up to 1, ratio from 0 to 1"
            )
        self.heads, self.top_p, self.ratio = heads, top_p, ratio
        self.tree = None if tree is None else find_tree(tree)
        self.size = size

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Fresh heads of both versions, with a fixed tree and with one of joint probabilities."""
        wide = {"intermediate_size": 2 * text_config(target).hidden_size}
        second = {"clover": {"num_heads": 3}} | wide
        shape = {"version": 1, "num_heads": 3, "num_layers": 1}
        first = {"clover": shape | {"own_outputs": text_config(target).vocab_size}} | wide
        return {
            "": cls(CloverHeads.for_target(target, second)),
            "first": cls(CloverHeads.for_target(target, first), size=9, ratio=0.1),
        }

    def load(self, model: nn.Module) -> None:
        """Load the heads."""
        self.heads = head_for((CloverHeads,), CloverHeads.for_target, self.heads, model)
        config = text_config(model)
        if self.heads.config.hidden_size != config.hidden_size:
            raise ZooError(
                f"the heads are for states of {self.heads.config.hidden_size} numbers, the "
                f"target's have {config.hidden_size}: they were trained for another one"
            )
        second = self.heads.version == 2
        # after all layers, before the last norm
        self.hidden_layer = config.num_hidden_layers if second else -1
        if self.tree is None and self.size is None:
            self.tree, self.size = (find_tree(EAGLE), None) if second else (None, FEW)
        if self.tree is not None:
            self.tree = self.tree.limited(self.heads.num_heads, config.vocab_size)

    def start(self, run: Run, prompt: Scores) -> None:
        """Read the prompt's states."""
        self._drafter = _Drafter(self.heads, run)
        counts = [len(sequence) - 1 for sequence in run.sequences]
        self._drafter.read([row[:n] for row, n in zip(prompt.hidden, counts, strict=True)])

    def propose(self, run: Run) -> Draft:
        """Head by head."""
        if self.tree is not None:
            return static_draft(run, self._drafter, self.tree)
        depth = self.heads.num_heads
        return joint_draft(run, self._drafter, self.size or FEW, depth, self.top_p, self.ratio)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Go on from the states of the accepted nodes."""
        paths = [[0, *verdict.path] for verdict in verdicts]
        self._drafter.read([scores.hidden[row, path] for row, path in enumerate(paths)])

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._drafter.select(list(rows))


class _Augmenting(nn.Module):
    """The augmenting layers of heads, called like a model of transformers."""

    _supports_attention_backend = True

    def __init__(self, heads: CloverHeads) -> None:
        super().__init__()
        self.heads, self.config = heads, heads.config

    def forward(self, cache: Any = None, **arguments: Any) -> Any:
        for name in ("use_cache", "output_hidden_states"):
            arguments.pop(name, None)
        return self.heads.augment(cache=cache, **arguments)


class _Drafter(LevelDrafter):
    """The heads in turn, over states of the augmenting layers."""

    def __init__(self, heads: CloverHeads, run: Run) -> None:
        self.heads, self.run = heads, run
        self.weight = run.model.get_output_embeddings().weight
        self.session = AttentionSession(_Augmenting(heads), len(run.sequences))
        run.draft_sessions.append(self.session)

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of the output layer."""
        return F.embedding(tokens, self.weight)

    def read(self, states: list[Tensor]) -> None:
        self.states = states

    def root(self) -> Tensor:
        counts, device = [len(row) for row in self.states], self.weight.device
        # each state meets the token after it
        tokens = pad_sequence(
            [
                torch.tensor(sequence[-count:], device=device)
                for sequence, count in zip(self.run.sequences, counts, strict=True)
            ],
            batch_first=True,
        )
        inputs = {
            "inputs_embeds": self.embed(tokens),
            "states": pad_sequence(self.states, batch_first=True),
        }
        hidden = self.session.read(inputs, counts).hidden
        state = hidden[range(len(counts)), [count - 1 for count in counts]]
        self.level, self.state = 0, state[:, None]  # [B, 1, d]
        return self._step(torch.tensor(self.run.roots, device=device)[:, None])

    def deeper(self, tokens: Tensor, above: Tensor) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        self.level, self.state = self.level + 1, self.state[rows, above]
        return self._step(tokens)

    def _step(self, tokens: Tensor) -> Tensor:
        out, self.state = self.heads.step(self.level, self.state, self.embed(tokens))
        logits = self.heads.logits(self.level, out, self.weight)
        return logits[..., : self.run.target.vocab_size]

    def select(self, rows: list[int]) -> None:
        self.states = [self.states[row] for row in rows]
