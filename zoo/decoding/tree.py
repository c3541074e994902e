"""The candidate tree: alternatives for the next tokens, arranged so that one pass scores them all.

Node 0 is the newest token that is already decided but not yet in the cache; every path from it down
is one possible continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from zoo.errors import ZooError

#: Parent of the root.
ROOT = -1
#: Parent of a node that only fills a batch up; nothing sees it and it is never accepted.
PADDING = -2


class Tree:
    """The shape of a candidate tree; tokens are kept apart, so that a shape can be used again.

    Args:
        parents: parent of each node; -1 for the first, and every other parent comes before its
            node.
        ranks: place of each node among its parent's sorted candidates; order of appearance by
            default.
    """

    def __init__(self, parents: Sequence[int], ranks: Sequence[int] | None = None) -> None:
        self.parents = tuple(int(p) for p in parents)
        if not self.parents or self.parents[0] != ROOT:
            raise ZooError("a tree starts with its root, whose parent is -1")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ZooError(
                    f"tree node {node} has parent {parent}: expected a node that comes before it"
                )
        self.children: tuple[tuple[int, ...], ...] = self._children()
        if ranks is None:
            ranks = [0] * len(self.parents)
            for children in self.children:
                for rank, child in enumerate(children):
                    ranks[child] = rank
        self.ranks = tuple(int(r) for r in ranks)

    def _children(self) -> tuple[tuple[int, ...], ...]:
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @classmethod
    def root(cls) -> Tree:
        """The root alone: plain decoding."""
        return cls([ROOT])

    @classmethod
    def chain(cls, length: int) -> Tree:
        """The root and ``length`` drafted tokens in a row."""
        return cls(range(-1, length))

    @classmethod
    def from_choices(cls, choices: Sequence[Sequence[int]]) -> Tree:
        """From paths of candidate ranks, such as ``[[0], [1], [0, 0]]``.

        Nodes are sorted by depth, then by path. Every path's beginning must be in the list.
        """
        paths = sorted({tuple(path) for path in choices}, key=lambda path: (len(path), path))
        index = {(): 0} | {path: node for node, path in enumerate(paths, start=1)}
        for path in paths:
            if not path or path[:-1] not in index:
                raise ZooError(
                    f"tree path {list(path)} is given, but {list(path[:-1])} is not: list every "
                    "beginning of a path too"
                )
        return cls(
            [ROOT, *(index[path[:-1]] for path in paths)], [0, *(path[-1] for path in paths)]
        )

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node; the root's is 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The nodes by depth, from the root's children on."""
        levels: list[list[int]] = [[] for _ in range(max(self.depths))]
        for node, depth in enumerate(self.depths):
            if depth:
                levels[depth - 1].append(node)
        return tuple(map(tuple, levels))

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return tuple(reversed(nodes))

    def inside(self, depth: int, ranks: int) -> list[int]:
        """The nodes not deeper than ``depth`` whose path has only ranks below ``ranks``."""
        keep: list[int] = []
        for node, parent in enumerate(self.parents):
            fits = self.depths[node] <= depth and self.ranks[node] < ranks
            if fits and (parent == ROOT or parent in keep):
                keep.append(node)
        return keep

    def limited(self, depth: int, ranks: int) -> Tree:
        """The same tree without nodes deeper than ``depth`` or of rank ``ranks`` and above."""
        keep = self.inside(depth, ranks)
        index = {ROOT: ROOT} | {node: i for i, node in enumerate(keep)}
        return Tree([index[self.parents[n]] for n in keep], [self.ranks[n] for n in keep])


def ancestor_matrix(parents: Tensor) -> Tensor:
    """Parents ``[B, N]`` -> bool ``[B, N, N]``, True at (i, j) where j is i or above i.

    A padding node (parent -2) is its own only ancestor.
    """
    nodes = torch.arange(parents.shape[1], device=parents.device)
    steps = (parents[..., None] == nodes) | torch.eye(len(nodes), device=parents.device).bool()
    reach, length = steps.float(), 1
    while length < len(nodes) - 1:  # paths of up to twice the length each time
        reach = (reach @ reach).clamp_max(1.0)
        length *= 2
    return reach > 0


def batch_parents(trees: Sequence[Tree]) -> Tensor:
    """Parents of several trees, padded to the same number of nodes: int64 ``[B, N]``."""
    size = max(map(len, trees))
    return torch.tensor([[*tree.parents, *[PADDING] * (size - len(tree))] for tree in trees])


def best_static_tree(accuracy: Tensor, size: int) -> Tree:
    """The tree of ``size`` drafted nodes with the most expected accepted tokens.

    Medusa, section 2.3.3: a path is worth the product of the accuracies along it, and the best
    neighbour (next sibling or first child) is added again and again.

    Args:
        accuracy: ``[depth, rank]``, probability that the candidate of that rank is right at that
            depth.
        size: number of nodes besides the root, at most what ``accuracy`` has room for.
    """
    table = accuracy.double().tolist()
    depth, ranks = accuracy.shape

    def worth(path: tuple[int, ...]) -> float:
        value = 1.0
        for level, rank in enumerate(path):
            value *= table[level][rank]
        return value

    chosen: list[tuple[int, ...]] = []
    border = {(0,): worth((0,))}
    while len(chosen) < size and border:
        path = max(border, key=lambda p: (border[p], [-r for r in p]))
        del border[path]
        chosen.append(path)
        if path[-1] + 1 < ranks:
            sibling = (*path[:-1], path[-1] + 1)
            border[sibling] = worth(sibling)
        if len(path) < depth:
            border[(*path, 0)] = worth((*path, 0))
    if len(chosen) < size:
        raise ZooError(
            f"a tree of {size} nodes was asked for, but a table of {depth} x {ranks} accuracies "
            f"holds only {len(chosen)}"
        )
    return Tree.from_choices(chosen)


def best_subtree(
    parents: Sequence[int], scores: Sequence[float], size: int
) -> tuple[Tree, list[int]]:
    """Keep the root and the ``size`` best-scored nodes of a grown tree (EAGLE-2's rule).

    Args:
        parents: of all nodes, as for :class:`Tree`.
        scores: of all nodes; a child's may not be above its parent's (joint log-probabilities).

    Returns:
        The tree and, for each of its nodes, which node of the grown tree it was.
    """
    order = sorted(range(1, len(parents)), key=lambda node: (-scores[node], node))
    keep = [0, *sorted(order[:size])]
    index = {ROOT: ROOT} | {node: i for i, node in enumerate(keep)}
    return Tree([index[parents[node]] for node in keep]), keep
