"""Published tree shapes, as data: how many children each node has, level by level."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.decoding.tree import Tree
from zoo.errors import ZooError

#: Trees of Medusa's repository, of 63 nodes each. The first is its and Hydra's default; stage 1 is
#: for Medusa-1 heads, stage 2 for Medusa-2's. A line is a level, a number a node, in the order of
#: :meth:`Tree.from_choices`; nodes at the end of a level that have no children are left out.
MEDUSA_TREES = {
    "mc_sim_7b_63": (
        "10",
        "10 7 3 2 1 1 1 1 1 1",
        "10 3 2 1 1 1 1 1 0 0 2 0 0 0 0 0 0 1",
        "2",
    ),
    "vicuna_7b_stage1": (
        "10",
        "10 7 4 3 2 2 1 1 1 1",
        "9 3 2 1 1 1 0 0 0 0 2 0 0 0 0 0 0 1",
        "1",
    ),
    "vicuna_7b_stage1_ablation": (
        "10",
        "10 4 2 2 1 1 1",
        "10 4 2 1 1 1 0 0 0 0 3 1 0 0 1 0 1",
        "4 1 1 0 0 0 0 0 0 0 1",
    ),
    "vicuna_7b_stage2": (
        "10",
        "10 5 2 2 1 1 1 1",
        "9 4 2 1 1 1 0 0 0 0 3 1 0 0 0 1",
        "4 1 1 0 0 0 0 0 0 1",
    ),
    "vicuna_13b_stage1": (
        "10",
        "10 7 4 2 2 1 1 1 1",
        "10 4 2 1 1 1 0 0 0 0 2 1 0 0 0 0 0 1",
        "1",
    ),
    "vicuna_13b_stage2": (
        "10",
        "10 4 2 1 1 1",
        "10 4 2 1 1 1 0 0 0 0 3 1 0 0 1 0 1",
        "4 2 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1",
    ),
    "vicuna_33b_stage1": (
        "10",
        "10 8 5 3 2 2 1 1 1 1",
        "9 3 2 1 1 0 0 0 0 0 2 0 0 0 0 0 0 0 1",
    ),
    "vicuna_33b_stage2": (
        "10",
        "10 5 3 2 1 1 1 1",
        "10 4 2 1 1 1 0 0 0 0 3 1 0 0 0 1",
        "3 1 0 0 0 0 0 0 0 0 1",
    ),
    "zephyr_stage2": (
        "10",
        "10 6 4 2 2 1 1 1",
        "10 4 2 1 1 1 0 0 0 0 2 1 0 0 0 0 1",
        "2 1",
    ),
}
#: Token Recycling's "2.2.2", of 80 nodes.
TOKEN_RECYCLING_TREES = {
    "2.2.2": (
        "8",
        "8 4 3 2 1 1 1 1",
        "8 3 2 1 1 1 1 1 2 1 0 0 1 0 0 1 0 1 1",
        "5 2 1 1 1 0 0 0 1 0 0 1 0 0 0 0 0 0 1 0 0 1 1",
        "3 1 1 0 0 1 0 0 0 0 1 0 1",
        "2 0 0 1",
    ),
}
#: EAGLE-1's tree of 25 nodes (choices.py of SafeAILab/EAGLE at 08dc06c), which Clover-2 takes over.
EAGLE_TREES = {"eagle_25": ("4", "3 2 2 1", "3 2 2 1", "3", "2")}
TREES = MEDUSA_TREES | TOKEN_RECYCLING_TREES | EAGLE_TREES
MEDUSA = "mc_sim_7b_63"
EAGLE = "eagle_25"
#: PPD's trees by the number of guesses that the last accepted node had, as they are chosen at run
#: time for passes of 105, 60 and 285 tokens, and the number of slots behind each node.
PPD_TREES: dict[str, dict[int, tuple[tuple[str, ...], str]]] = {
    "vicuna_7b": {
        1: (("10",), "3" * 10),
        2: (("10", "10 6 3 2 1 1"), "332222222233322222223222222222222"),
        3: (("10", "10 4 2 1 1", "4 2"), "3322222222322222222222222222222222"),
    },
    "vicuna_13b": {
        1: (("10",), "3" * 10),
        2: (("8", "7 3 1 1"), "2" * 20),
        3: (("7", "7 2 1", "2 1"), "2" * 20),
    },
    "mobilellama": {
        1: (("10",), "3" * 10),
        2: (
            ("10", "10 10 10 10 8 7 6 5 4 4"),
            "33333333333333333333333333222233322222223322222222322222223" + "2" * 25,
        ),
        3: (
            (
                "10",
                "10 10 8 6 5 4 3 2 2 2",
                "8 5 4 3 1 0 0 0 0 0 3 2 0 0 0 0 0 0 0 0 1",
            ),
            "3333333322333333222233322222223" + "2" * 58,
        ),
    },
}
TOKEN_RECYCLING = "2.2.2"


def find_tree(tree: str | Sequence[Sequence[int]] | Tree) -> Tree:
    """A tree from a name in :data:`TREES`, from paths of ranks, or as it is."""
    if isinstance(tree, Tree):
        return tree
    if not isinstance(tree, str):
        return Tree.from_choices(tree)
    if tree not in TREES:
        raise ZooError(f"there is no tree '{tree}': expected one of {', '.join(TREES)}, or paths")
    return tree_of_counts(TREES[tree])


def tree_of_counts(levels: Sequence[str]) -> Tree:
    """A tree from the numbers of its nodes' children, level by level."""
    parents, ranks, level = [-1], [0], [0]
    for counts in levels:
        children = []
        for node, count in zip(level, map(int, counts.split()), strict=False):
            for rank in range(count):
                children.append(len(parents))
                parents.append(node)
                ranks.append(rank)
        level = children
    return Tree(parents, ranks)
