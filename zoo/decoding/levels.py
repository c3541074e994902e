"""Trees that heads draft level by level: a branch goes on by what is said about that branch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zoo.decoding.method import Run
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft


class LevelDrafter(ABC):
    """What heads say along the branches of a tree that grows level by level."""

    @abstractmethod
    def read(self, states: list[Tensor]) -> None:
        """The target's states ``[n, d]`` at the tokens of each sequence that were decided since,
        without the root."""

    @abstractmethod
    def root(self) -> Tensor:
        """Logits ``[B, 1, V]`` of the roots' children; a new tree begins."""

    @abstractmethod
    def deeper(self, tokens: Tensor, above: Tensor) -> Tensor:
        """Go one level down.

        Args:
            tokens: ``[B, n]``, nodes that have children.
            above: int64 ``[B, n]``, for each of them the place of its parent among those of the
                level before.

        Returns:
            Logits ``[B, n, V]`` of their children.
        """

    @abstractmethod
    def select(self, rows: list[int]) -> None:
        """Keep these sequences; no tree is open."""


def static_draft(run: Run, drafter: LevelDrafter, tree: Tree) -> Draft:
    """Fill a tree: one call of the heads for all nodes of a level that have children."""
    tokens = torch.zeros(len(run.roots), len(tree), dtype=torch.long, device=run.target.device)
    tokens[:, 0] = torch.tensor(run.roots, device=tokens.device)
    if not tree.levels:
        return Draft([tree] * len(tokens), tokens)
    logits, expanded = drafter.root(), [0]
    for depth, nodes in enumerate(tree.levels):
        best = logits.topk(max(tree.ranks[node] for node in nodes) + 1, dim=-1).indices
        parents = [expanded.index(tree.parents[node]) for node in nodes]
        tokens[:, list(nodes)] = best[:, parents, [tree.ranks[node] for node in nodes]]
        if depth + 1 == len(tree.levels):
            break
        expanded = [node for node in nodes if tree.children[node]]
        above = [parents[nodes.index(node)] for node in expanded]
        places = torch.tensor(above, device=tokens.device).expand(len(tokens), -1)
        logits = drafter.deeper(tokens[:, expanded], places)
    return Draft([tree] * len(tokens), tokens)


class _Grown:
    """The tree of one sequence while it grows: nodes, their joint probabilities, and those of the
    newest level."""

    def __init__(self, root: int) -> None:
        self.parents, self.tokens, self.joint = [-1], [root], [1.0]
        self.newest = [0]

    def grow(self, probs: list[list[float]], tokens: list[list[int]], left: int) -> list[int]:
        """Add the ``left`` most probable of the newest nodes' candidates.

        Args:
            probs: for each of the newest nodes the probabilities of its candidates, falling.
            tokens: the candidates.
            left: room.

        Returns:
            For each new node the place of its parent among those that were the newest.
        """
        found = [
            (self.joint[node] * value, place, token)
            for place, node in enumerate(self.newest)
            for value, token in zip(probs[place], tokens[place], strict=True)
        ]
        # a node's candidates stay in order: equal ones are taken as they come
        kept = sorted(sorted(range(len(found)), key=lambda i: (-found[i][0], i))[:left])
        first, places = len(self.parents), []
        for i in kept:
            value, place, token = found[i]
            self.parents.append(self.newest[place])
            self.tokens.append(token)
            self.joint.append(value)
            places.append(place)
        self.newest = list(range(first, len(self.parents)))
        return places


def joint_draft(
    run: Run, drafter: LevelDrafter, size: int, depth: int, top_p: float, ratio: float
) -> Draft:
    """Grow a tree of ``size`` nodes by joint probability, level by level (Clover's sampling).

    Of each node the most probable candidates are considered that together reach ``top_p``, and
    that have ``ratio`` of the best one's probability. Those of a level are ranked by joint
    probability, and as many are kept as there is room; the rest of it is left to the next level.

    Args:
        run, drafter: what is drafted for, and by whom.
        size: nodes besides the root.
        depth: most levels.
        top_p, ratio: see above.
    """
    device = run.target.device
    grown = [_Grown(root) for root in run.roots]
    logits = drafter.root()
    for level in range(depth):
        probs = logits.float().softmax(-1)
        best = probs.topk(min(size, probs.shape[-1]), dim=-1)  # [B, n, k]
        before = best.values.cumsum(-1) - best.values
        fits = (before < top_p) & (best.values >= ratio * best.values[..., :1])
        counts, values, tokens = fits.sum(-1).tolist(), best.values.tolist(), best.indices.tolist()
        above = []
        for row, tree in enumerate(grown):
            offered = range(len(tree.newest))
            above.append(
                tree.grow(
                    [values[row][n][: counts[row][n]] for n in offered],
                    [tokens[row][n][: counts[row][n]] for n in offered],
                    size + 1 - len(tree.parents),
                )
            )
        # what needs no children of its own is not expanded
        full = [len(tree.parents) > size for tree in grown]
        if level + 1 == depth or all(full):
            break
        width = max(map(len, above))
        padded = [[*places, *[0] * (width - len(places))] for places in above]
        newest = [[tree.tokens[node] for node in tree.newest] for tree in grown]
        newest = [[*row, *[0] * (width - len(row))] for row in newest]
        logits = drafter.deeper(
            torch.tensor(newest, device=device), torch.tensor(padded, device=device)
        )
    width = max(len(tree.tokens) for tree in grown)
    filled = [[*tree.tokens, *[0] * (width - len(tree.tokens))] for tree in grown]
    return Draft([Tree(tree.parents) for tree in grown], torch.tensor(filled, device=device))
