"""Trees that follow the last accepted node: published ones, and the optimiser that builds them."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.language_models import make_model
from zoo.decoding import Tree
from zoo.decoding.sparse_trees import (
    SlottedTree,
    best_states,
    expected_accepted,
    fastest_states,
    find_states,
    last_accepted,
    objective,
    pass_seconds,
    stationary,
    with_slots,
)
from zoo.errors import ZooError

TABLE = torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vicuna_7b", [(10, 30), (33, 72), (34, 71)]),
        ("vicuna_13b", [(10, 30), (20, 40), (20, 40)]),
        ("mobilellama", [(10, 30), (84, 201), (89, 196)]),
    ],
)
def test_published_trees(name: str, sizes: list[tuple[int, int]]) -> None:
    states = find_states(name, 3)
    assert [(len(s.tree) - 1, sum(s.slots[1:])) for s in states.values()] == sizes
    assert all(s.slots[0] == 3 and max(s.tree.depths) == n for n, s in states.items())


def test_trees_from_the_authors_lists_and_for_fewer_slots() -> None:
    entries = [[[1], 0.1, 2], [[0], 0.4, 3], [[0, 0], 0.2, 1], [[0, 0, 0], 0.1, 3]]
    (slotted,) = find_states({"3": entries}, 3).values()
    assert slotted.tree.parents == (-1, 0, 0, 1, 3) and slotted.slots == (3, 3, 2, 1, 3)
    assert slotted.size == 4 + 9
    smaller = slotted.limited(2, 1)  # two slots, one token
    assert smaller.tree.parents == (-1, 0, 1) and smaller.slots == (2, 2, 1)
    with pytest.raises(ZooError, match="there are no trees 'x'"):
        find_states("x", 3)
    with pytest.raises(ZooError, match="a number of slots"):
        SlottedTree(Tree.chain(2), (1, 1))


def test_who_is_accepted_last() -> None:
    tree = Tree.from_choices([[0], [1], [0, 0]])
    # root, [0], [1], [0, 0]
    assert last_accepted(tree, TABLE) == pytest.approx([0.3, 0.3, 0.2, 0.2])
    assert expected_accepted(tree, TABLE) == pytest.approx(0.5 + 0.2 + 0.2)
    # the slot that is missed least goes first: that of the node that is last least often
    slotted = with_slots(tree, [0.3, 0.3, 0.2, 0.1], [0.0, 0.7, 1.0, 1.1], budget=3 + 7)
    assert slotted.slots == (3, 3, 2, 2)
    assert with_slots(tree, [0.3, 0.3, 0.2, 0.1], [0.0, 0.7, 1.0, 1.1], 3 + 5).slots == (3, 2, 2, 1)
    with pytest.raises(ZooError, match="do not fit into a budget of 5"):
        with_slots(tree, [0.3, 0.3, 0.2, 0.1], [0.0, 0.7, 1.0, 1.1], 5)


def test_shares_of_states_are_those_of_the_chain() -> None:
    states = {
        1: SlottedTree(Tree.chain(1), (2, 1)),
        2: SlottedTree(Tree.from_choices([[0], [1]]), (2, 2, 1)),
    }
    # from 1: with 0.5 to 1, else to 2; from 2: with 0.2 to 1, else to 2
    shares = stationary(states, TABLE)
    assert shares == pytest.approx({1: 0.2 / 0.7, 2: 0.5 / 0.7})
    assert objective(states, TABLE) == pytest.approx((0.2 * 0.5 + 0.5 * 0.7) / 0.7)


@pytest.mark.parametrize(("budget", "copies"), [(2, 1), (9, 1), (24, 1), (31, 2), (40, 1)])
def test_built_trees_keep_the_budget_and_reach_every_state(budget: int, copies: int) -> None:
    states = best_states(TABLE, budget, copies)
    assert list(states) == [1, 2, 3]
    for state, slotted in states.items():
        nodes = len(slotted.tree) - 1
        assert nodes >= 1 and nodes + copies * sum(slotted.slots[1:]) <= budget
        assert max(slotted.tree.depths) <= state
        assert slotted.slots[0] == 3 and min(slotted.slots) >= 1
    shares = stationary(states, TABLE)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[3] > 0


def test_more_room_is_never_worse_and_the_search_is_one() -> None:
    values = [objective(best_states(TABLE, budget), TABLE) for budget in (4, 8, 16, 32)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))
    # every size of two states by hand, one embedding a slot, two slots
    table, budget = TABLE[:2], 10
    best = 0.0
    for size in range(1, 6):
        found = best_states(table, budget)
        tree = Tree.from_choices(([[0], [1], [0, 0], [2], [0, 1], [1, 0]])[:size])
        gains = [0.0, 0.8, expected_accepted(tree, table)]
        states = {1: found[1], 2: with_slots(tree, last_accepted(tree, table), gains, budget)}
        best = max(best, objective(states, table))
    assert objective(best_states(table, budget), table) == pytest.approx(best)


def test_the_fastest_trees_follow_the_times() -> None:
    flat, steep = (
        {size: t for size, t in zip((8, 16, 40), s, strict=True)}
        for s in ((1.0, 1.0, 1.0), (1.0, 2.0, 5.0))
    )
    assert fastest_states(TABLE, flat)[1] == 36
    assert fastest_states(TABLE, steep)[1] == 4
    with pytest.raises(ZooError, match="expected one of 6 or more"):
        fastest_states(TABLE, {4: 1.0})
    ticks = itertools.count()
    found = pass_seconds(make_model("llama"), (1, 5), repeat=2, clock=lambda: float(next(ticks)))
    assert found == {1: 1.0, 5: 1.0}
