"""Trees whose shape follows from how many guesses the last accepted node had (PPD, section 4).

A node that carries n slots leaves n guesses to the next pass if it is the last that is accepted; so
the number of slots is the state of a Markov chain, and each state has a tree of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding.session import position_limit
from zoo.decoding.steering import open_session
from zoo.decoding.tree import Tree, best_static_tree
from zoo.decoding.tree_templates import PPD_TREES, tree_of_counts
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config

#: Sizes of a pass whose times are measured, and tokens that stand before it.
SIZES, BEFORE = (1, 8, 16, 32, 64, 96, 128), 32
#: Most values that are tried for the size of one state's tree.
TRIED = 8


@dataclass(frozen=True)
class SlottedTree:
    """A tree of candidates, and how many slots stand behind each of its nodes, the root's first."""

    tree: Tree
    slots: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.slots) != len(self.tree) or min(self.slots) < 0:
            raise ZooError(
                f"a tree of {len(self.tree)} nodes with slots {list(self.slots)[:8]}: expected a "
                "number of slots, 0 or more, for each node"
            )

    @property
    def size(self) -> int:
        """Nodes and slots that a pass reads besides the root and its own slots."""
        return len(self.tree) - 1 + sum(self.slots[1:])

    def limited(self, most: int, ranks: int) -> SlottedTree:
        """The same for prompt tokens of ``most`` slots and a vocabulary of ``ranks`` tokens."""
        keep = self.tree.inside(most, ranks)
        slots = tuple(min(self.slots[node], most) for node in keep)
        return SlottedTree(self.tree.limited(most, ranks), slots)


#: A tree for each number of slots that the last accepted node may have had.
States = Mapping[int, SlottedTree]


def find_states(trees: str | Mapping[Any, Sequence[Sequence[Any]]], most: int) -> States:
    """The trees of all states from the name of a published set, or from paths.

    Args:
        trees: a name in :data:`zoo.decoding.tree_templates.PPD_TREES`; or for each state a list of
            ``(path of ranks, slots)``, as in the authors' files also with a probability between.
        most: m, the slots of a root.
    """
    if isinstance(trees, str):
        if trees not in PPD_TREES:
            raise ZooError(
                f"there are no trees '{trees}': expected one of {', '.join(PPD_TREES)}, or "
                "{state: [[path, slots], ...]}"
            )
        return {
            state: SlottedTree(tree_of_counts(levels), (most, *map(int, slots)))
            for state, (levels, slots) in PPD_TREES[trees].items()
        }
    found = {}
    for state, entries in trees.items():
        slots = {tuple(path): int(rest[-1]) for path, *rest in entries}
        paths = sorted(slots, key=lambda path: (len(path), path))
        tree = Tree.from_choices(paths)
        found[int(state)] = SlottedTree(tree, (most, *(slots[path] for path in paths)))
    return found


def last_accepted(tree: Tree, accuracy: Tensor) -> list[float]:
    """For each node the probability that it is the last one that is accepted.

    Args:
        tree: its ranks say which guess of a slot a node is.
        accuracy: ``[depth, rank]``, probability that the guess is right; those of one slot sum to
            at most 1.
    """
    table, values = accuracy.double().tolist(), [1.0]
    for node in range(1, len(tree)):
        right = table[tree.depths[node] - 1][tree.ranks[node]]
        values.append(values[tree.parents[node]] * right)
    left = list(values)
    for node in range(1, len(tree)):
        left[tree.parents[node]] -= values[node]
    return left


def expected_accepted(tree: Tree, accuracy: Tensor) -> float:
    """Mean number of drafts that are accepted of a tree."""
    chances = last_accepted(tree, accuracy)
    return sum(depth * chance for depth, chance in zip(tree.depths, chances, strict=True))


def with_slots(
    tree: Tree, chances: Sequence[float], gains: Sequence[float], budget: int, copies: int = 1
) -> SlottedTree:
    """Give every node all slots, then take away those that are missed least, down to the budget.

    Args:
        tree: the candidates.
        chances: of each node, see :func:`last_accepted`.
        gains: expected accepted drafts of states 0 to m; the root keeps m slots.
        budget: for nodes and slots, the root's own aside.
        copies: embeddings of one slot.
    """
    most = len(gains) - 1
    slots = [most] * len(tree)
    nodes = len(tree) - 1
    size = nodes + copies * most * nodes

    def loss(node: int) -> tuple[float, int]:
        return chances[node] * (gains[slots[node]] - gains[slots[node] - 1]), node

    able = [loss(node) for node in range(1, len(tree)) if most > 1]
    heapify(able)
    while size > budget:
        if not able:
            raise ZooError(
                f"{nodes} nodes do not fit into a budget of {budget}: each has a slot at least"
            )
        node = heappop(able)[1]
        slots[node] -= 1
        size -= copies
        if slots[node] > 1:
            heappush(able, loss(node))
    return SlottedTree(tree, tuple(slots))


def stationary(states: States, accuracy: Tensor) -> dict[int, float]:
    """How often each state is met in the long run.

    The chain goes from a state to the number of slots of the node that is accepted last, which is
    the root if none is. (The authors' code leaves that case out of the sum.)
    """
    return _shares(
        {
            state: (last_accepted(slotted.tree, accuracy), slotted.slots)
            for state, slotted in states.items()
        }
    )


def _shares(ends: Mapping[int, tuple[Sequence[float], Sequence[int]]]) -> dict[int, float]:
    """The same from each node's chance to be the last one, and its slots."""
    numbers = sorted(ends)
    place = {number: index for index, number in enumerate(numbers)}
    rows = [[0.0] * len(numbers) for _ in numbers]
    for row, state in enumerate(numbers):
        for chance, slots in zip(*ends[state], strict=True):
            rows[row][place[slots]] += chance
    moves = torch.tensor(rows, dtype=torch.float64)
    # pi (moves - 1) = 0 and sum(pi) = 1
    system = torch.cat([moves.T - torch.eye(len(numbers)), torch.ones(1, len(numbers))])
    wanted = torch.zeros(len(numbers) + 1, 1, dtype=torch.float64)
    wanted[-1] = 1
    solved = torch.linalg.lstsq(system, wanted, driver="gelsd").solution[:, 0].clamp_min(0)
    return dict(zip(numbers, (solved / solved.sum()).tolist(), strict=True))


def objective(states: States, accuracy: Tensor) -> float:
    """Mean number of drafts that are accepted, in the long run."""
    shares = stationary(states, accuracy)
    return sum(
        share * expected_accepted(states[state].tree, accuracy) for state, share in shares.items()
    )


def best_states(accuracy: Tensor, budget: int, copies: int = 1) -> States:
    """The trees of all states with the most accepted drafts for one size of a pass.

    State 1 has all guesses of its slot that fit; the sizes of the others are searched, and to each
    the slots are fitted (:func:`with_slots`).

    Args:
        accuracy: ``[m, ranks]``; see :func:`last_accepted`.
        budget: see :func:`with_slots`.
        copies: embeddings of one slot.
    """
    most, ranks = accuracy.shape
    room = budget // (1 + copies)  # every node has a slot at least
    if room < 1:
        raise ZooError(f"a budget of {budget} holds no node with its slot: expected 2 or more")
    sizes = [[min(ranks, room)]]
    for depth in range(2, most + 1):
        largest = min(room, sum(ranks**level for level in range(1, depth + 1)))
        first = min(max(1, budget // (1 + most * copies)), largest)
        step = max(1, -(-(largest - first) // TRIED))
        sizes.append(list(range(first, largest + 1, step)))
    trees = [
        {size: best_static_tree(accuracy[: depth + 1], size) for size in tried}
        for depth, tried in enumerate(sizes)
    ]
    gains = [
        {size: expected_accepted(tree, accuracy) for size, tree in known.items()} for known in trees
    ]
    chances = [
        {size: last_accepted(tree, accuracy) for size, tree in known.items()} for known in trees
    ]
    best: tuple[float, States] | None = None
    for chosen in product(*sizes):
        reached = [0.0, *(gains[depth][size] for depth, size in enumerate(chosen))]
        states = {
            depth + 1: with_slots(trees[depth][size], chances[depth][size], reached, budget, copies)
            for depth, size in enumerate(chosen)
        }
        shares = _shares(
            {state: (chances[state - 1][chosen[state - 1]], s.slots) for state, s in states.items()}
        )
        value = sum(share * reached[state] for state, share in shares.items())
        if best is None or value > best[0]:
            best = value, states
    return best[1]  # type: ignore[index]


def fastest_states(
    accuracy: Tensor, seconds: Mapping[int, float], copies: int = 1
) -> tuple[States, int]:
    """The trees that give the most tokens in a second, and their budget.

    Args:
        accuracy: see :func:`best_states`.
        seconds: time of a pass by the number of tokens that it reads.
        copies: embeddings of one slot.
    """
    own = 1 + copies * len(accuracy)  # the root and its slots
    found = []
    for size in sorted(seconds):
        if (budget := size - own) >= 1 + copies:
            states = best_states(accuracy, budget, copies)
            found.append(((1 + objective(states, accuracy)) / seconds[size], states, budget))
    if not found:
        raise ZooError(
            f"passes of {sorted(seconds)} tokens were measured: expected one of {own + 1 + copies} "
            "or more, which is the root, a candidate and their slots"
        )
    _, states, budget = max(found, key=lambda entry: entry[0])
    return states, budget


@torch.no_grad()
def pass_seconds(
    model: nn.Module,
    sizes: Sequence[int] = SIZES,
    repeat: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Time of a pass that reads a tree of so many tokens, on the model's device.

    Args:
        model: the target, in eval mode.
        sizes: of the trees.
        repeat: measure each so often and take the least.
        clock: gives seconds.
    """
    session = open_session(model, 1)
    vocabulary = text_config(model).vocab_size
    length = max(1, min(BEFORE, position_limit(model) - 1))
    session.advance([[token % vocabulary for token in range(1, length + 1)]])
    found = {}
    for size in sizes:
        tokens = torch.arange(size, device=session.device)[None] % vocabulary
        parents = torch.full((1, size), -1, device=session.device)
        times = []
        for _ in range(repeat + 1):
            _wait(session.device)
            began = clock()
            session.grow(tokens, parents)
            _wait(session.device)
            times.append(clock() - began)
            session.commit([[]])
        found[size] = min(times[1:])
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
