from __future__ import annotations

import itertools

import pytest
import torch

from zoo.decoding.tree import (
    Tree,
    ancestor_matrix,
    batch_parents,
    best_static_tree,
    best_subtree,
)
from zoo.decoding.tree_templates import MEDUSA_TREES, TOKEN_RECYCLING, find_tree
from zoo.errors import ZooError


def test_choices_are_sorted_and_linked() -> None:
    tree = Tree.from_choices([[0, 1], [1], [0], [0, 0], [1, 0], [0, 0, 2]])
    assert tree.parents == (-1, 0, 0, 1, 1, 2, 3)
    assert tree.ranks == (0, 0, 1, 0, 1, 0, 2)
    assert tree.depths == (0, 1, 1, 2, 2, 2, 3)
    assert tree.levels == ((1, 2), (3, 4, 5), (6,))
    assert tree.path(6) == (0, 1, 3, 6)


def test_published_templates_have_their_published_sizes() -> None:
    recycling = find_tree(TOKEN_RECYCLING)
    assert [len(level) for level in recycling.levels] == [8, 21, 25, 15, 8, 3]
    medusa = find_tree("mc_sim_7b_63")
    assert [len(level) for level in medusa.levels] == [10, 28, 23, 2]
    leaves = {name: sum(not below for below in find_tree(name).children) for name in MEDUSA_TREES}
    assert leaves == {
        "mc_sim_7b_63": 42,
        "vicuna_7b_stage1": 44,
        "vicuna_7b_stage1_ablation": 42,
        "vicuna_7b_stage2": 42,
        "vicuna_13b_stage1": 44,
        "vicuna_13b_stage2": 42,
        "vicuna_33b_stage1": 46,
        "vicuna_33b_stage2": 43,
        "zephyr_stage2": 44,
    }
    for name in MEDUSA_TREES:
        tree = find_tree(name)
        assert len(tree) == 64
        paths = [[tree.ranks[n] for n in tree.path(node)[1:]] for node in range(1, 64)]
        assert Tree.from_choices(paths).parents == tree.parents  # in the order of paths
    with pytest.raises(ZooError, match=r"no tree 'x': expected one of mc_sim"):
        find_tree("x")


def test_ancestors_of_random_trees_agree_with_their_paths() -> None:
    generator = torch.Generator().manual_seed(0)
    trees = [
        Tree([-1, *(int(torch.randint(n, (), generator=generator)) for n in range(1, size))])
        for size in (1, 2, 5, 64, 65, 200)
    ]
    batch = ancestor_matrix(batch_parents(trees))
    for tree, rows in zip(trees, batch, strict=True):
        for node in range(len(tree)):
            assert rows[node].nonzero().squeeze(1).tolist() == list(tree.path(node))
        for padding in range(len(tree), rows.shape[0]):
            assert rows[padding].nonzero().squeeze(1).tolist() == [padding]
    chain = ancestor_matrix(torch.tensor([Tree.chain(130).parents]))[0]
    assert torch.equal(chain, torch.ones_like(chain).tril())


def test_limited_drops_whole_branches() -> None:
    tree = Tree.from_choices([[0], [3], [3, 0], [0, 0], [0, 0, 0]])
    assert tree.limited(2, 3).parents == (-1, 0, 1)


def test_best_static_tree_is_the_best_of_all_trees() -> None:
    accuracy = torch.tensor([[0.6, 0.25, 0.1], [0.5, 0.3, 0.05]])
    worth = {
        path: float(torch.prod(torch.stack([accuracy[d, r] for d, r in enumerate(path)])))
        for depth in (1, 2)
        for path in itertools.product(range(3), repeat=depth)
    }

    def complete(paths) -> bool:
        return all(p[:-1] in paths for p in paths if len(p) > 1)

    best = max(
        sum(worth[p] for p in paths)
        for paths in itertools.combinations(worth, 4)
        if complete(set(paths))
    )
    tree = best_static_tree(accuracy, 4)
    got = sum(worth[tuple(tree.ranks[n] for n in tree.path(n)[1:])] for n in range(1, 5))
    assert got == pytest.approx(best)
    with pytest.raises(ZooError, match="holds only 12"):
        best_static_tree(accuracy, 13)


def test_best_subtree_keeps_parents() -> None:
    tree, kept = best_subtree([-1, 0, 0, 1, 1, 2], [0, -0.1, -2.0, -0.2, -3.0, -2.5], 3)
    assert kept == [0, 1, 2, 3]
    assert tree.parents == (-1, 0, 0, 1)


def test_bad_trees_are_refused() -> None:
    with pytest.raises(ZooError, match="list every beginning"):
        Tree.from_choices([[0], [1, 0]])
    with pytest.raises(ZooError, match="comes before"):
        Tree([-1, 2, 0])
    with pytest.raises(ZooError, match="root"):
        Tree([0])
