"""What decoding returns: the texts, and what became of the proposals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from zoo.decoding.tree import Tree


@dataclass
class Acceptance:
    """What became of the proposals of a run.

    Attributes:
        drafted: nodes that were proposed, roots not counted.
        accepted: how many of them became text.
        offered_by_depth: how often there was a node of that depth below an accepted one (depth 1:
            the root's children).
        accepted_by_depth: how often one of them was accepted.
        accepted_by_rank: ``(depth, rank)`` of the accepted nodes; rank 0 is a parent's first
            candidate.
    """

    drafted: int = 0
    accepted: int = 0
    offered_by_depth: Counter[int] = field(default_factory=Counter)
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    accepted_by_rank: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def wasted(self) -> int:
        """Nodes that were proposed in vain."""
        return self.drafted - self.accepted

    def shares(self) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
        """By depth how many of the offers were accepted; by (depth, rank) the part of that rank."""
        by_depth = {
            depth: self.accepted_by_depth[depth] / offered
            for depth, offered in sorted(self.offered_by_depth.items())
        }
        by_rank = {
            (depth, rank): count / self.accepted_by_depth[depth]
            for (depth, rank), count in sorted(self.accepted_by_rank.items())
        }
        return by_depth, by_rank

    def add(self, tree: Tree, path: Sequence[int]) -> None:
        """Count one step of one sequence."""
        self.drafted += len(tree) - 1
        self.accepted += len(path)
        for depth, node in enumerate(path, start=1):
            self.offered_by_depth[depth] += 1
            self.accepted_by_depth[depth] += 1
            self.accepted_by_rank[depth, tree.ranks[node]] += 1
        if tree.children[path[-1] if path else 0]:
            self.offered_by_depth[len(path) + 1] += 1


@dataclass
class Generation:
    """What :func:`generate` returns.

    Attributes:
        sequences: int64 ``[B, T + longest continuation]``: the prompts as they were given, then the
            new tokens, then padding.
        new_tokens: the new tokens of each sequence, a stop token included.
        steps: how often the target verified a tree.
        accept_lengths: for each sequence the number of new tokens of each step, the target's own
            included; plain decoding has ones. A token that the prompt's pass gave is not in it.
        acceptance: what became of the proposals.
        seconds: time of the whole call, and of reading the prompt.
        target_tokens: tokens that went through the target.
        draft_calls: passes of the draft models.
        report: what else the method measured, by name.
    """

    sequences: Tensor
    new_tokens: list[list[int]]
    steps: int
    accept_lengths: list[list[int]]
    acceptance: Acceptance
    seconds: float
    prompt_seconds: float
    target_tokens: int
    draft_calls: int
    report: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of new tokens of a step, over all steps and sequences."""
        lengths = [n for row in self.accept_lengths for n in row]
        return sum(lengths) / max(len(lengths), 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences per second, the reading of the prompts left out."""
        return sum(map(len, self.new_tokens)) / max(self.seconds - self.prompt_seconds, 1e-9)
