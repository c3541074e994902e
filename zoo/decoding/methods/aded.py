"""ADED: a tree search over a table of three-token sequences, which grows with what is accepted.

Paper: Adaptive Draft-Verification for Efficient Large Language Model Decoding (2024, arXiv
2407.12021). No training and no model. Constants and the search are those of the authors' code
(liuxukun2000/Adaptix, commit 241dad8); theirs depends on the order of hash tables and on an
unseeded generator, this one is repeatable.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from zoo.checkpoints import read_state_dict
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config

#: Successors that a pair keeps when a table is counted or read.
SUCCESSORS = 12
#: Exploration of the search.
C1, C2 = 32.0, 8.0
#: What each sequence of the last tokens gains at every step, the most it can reach, and how many
#: tokens back it is looked for.
GAIN, MOST, WINDOW = 0.04, 3.0, 16

Pair = tuple[int, int]


class TrigramTable:
    """Which tokens follow a pair of tokens, with weights.

    Args:
        pairs: pair -> token -> weight.
        limit: most pairs; the oldest are forgotten.
    """

    def __init__(
        self, pairs: dict[Pair, dict[int, float]] | None = None, limit: int = 1_000_000
    ) -> None:
        self.pairs, self.limit = pairs or {}, limit

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def counted(cls, texts: Iterable[Sequence[int]]) -> TrigramTable:
        """From texts: how often each token follows a pair, as a share; the most frequent stay."""
        counts: dict[Pair, dict[int, float]] = {}
        for text in texts:
            for first, second, third in zip(text, text[1:], text[2:], strict=False):
                after = counts.setdefault((int(first), int(second)), {})
                after[int(third)] = after.get(int(third), 0) + 1
        for pair, after in counts.items():
            total = sum(after.values())
            counts[pair] = {token: count / total for token, count in _heaviest(after)}
        return cls(counts)

    def strengthen(self, text: Sequence[int]) -> None:
        """Raise the weights of the sequences at the end of a text."""
        tail = text[-WINDOW:]
        for first, second, third in zip(tail, tail[1:], tail[2:], strict=False):
            after = self.pairs.setdefault((first, second), {})
            after[third] = min(after.get(third, 0.0) + GAIN, MOST)
        while len(self.pairs) > self.limit:
            del self.pairs[next(iter(self.pairs))]

    def save(self, file: str | Path) -> None:
        """Write the table: pairs ``[K, 2]``, where their successors begin, these and weights."""
        starts, tokens, weights = [0], [], []
        for after in self.pairs.values():
            tokens += after.keys()
            weights += after.values()
            starts.append(len(tokens))
        save_file(
            {
                "keys": torch.tensor(list(self.pairs), dtype=torch.int32).view(-1, 2),
                "indptr": torch.tensor(starts, dtype=torch.int64),
                "succ": torch.tensor(tokens, dtype=torch.int32),
                "weight": torch.tensor(weights, dtype=torch.float32),
            },
            file,
        )

    @classmethod
    def read(cls, file: str | Path) -> TrigramTable:
        """The table of a file that :meth:`save` wrote; the heaviest successors stay.

        Raises:
            ZooError: if it is none.
        """
        tensors = read_state_dict(file)
        if set(tensors) != {"keys", "indptr", "succ", "weight"}:
            raise ZooError(
                f"{file} holds {', '.join(sorted(tensors)[:4])}: expected a file that "
                "TrigramTable.save wrote"
            )
        keys, starts, tokens, weights = (
            tensors[name] for name in ("keys", "indptr", "succ", "weight")
        )
        bounds = starts.tolist()
        fits = keys.dim() == 2 and keys.shape == (len(bounds) - 1, 2)
        fits = fits and bounds[0] == 0 and bounds == sorted(bounds) and bounds[-1] == len(tokens)
        fits = fits and len(tokens) == len(weights) and bool((weights > 0).all())
        if not fits or not weights.isfinite().all():
            raise ZooError(
                f"{file}: {list(keys.shape)} pairs, {len(bounds)} bounds, {len(tokens)} tokens and "
                f"{len(weights)} weights do not fit together: the file is damaged"
            )
        rows, values = tokens.tolist(), weights.tolist()
        pairs = {}
        for (first, second), begin, end in zip(keys.tolist(), bounds, bounds[1:], strict=False):
            after = dict(zip(rows[begin:end], values[begin:end], strict=True))
            pairs[first, second] = dict(_heaviest(after))
        return cls(pairs)

    def largest(self) -> int:
        """The largest token in it; -1 if it is empty."""
        pairs = max((max(pair) for pair in self.pairs), default=-1)
        return max([pairs, *(token for after in self.pairs.values() for token in after)])


def _heaviest(after: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(after.items(), key=lambda entry: -entry[1])[:SUCCESSORS]


@dataclass
class _Node:
    """A pair that the search has reached."""

    pair: Pair
    prior: float = 0.0
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    score: float = 0.0

    def chosen(self) -> _Node:
        """The child with the best upper bound; the first that was never visited."""
        best, found = -math.inf, self.children[0]
        reach = (C1 + math.log((self.visits + C2 + 1) / C2)) * math.sqrt(self.visits)
        for child in self.children:
            if child.visits == 0:
                return child
            bound = child.score / child.visits + reach * child.prior / (1 + child.visits)
            if bound > best:
                best, found = bound, child
        return found


class TreeSearch:
    """A Monte-Carlo tree search for the most promising continuations of a pair.

    Args:
        table: what may follow.
        pair: the last two tokens.
        depth: pairs of a continuation, the first counted.
        along_path: value a continuation by the weights along it, as the paper has it. The authors'
            code adds the weight of repeating the last token of each pair instead, which is 0 as a
            rule: then the priors alone guide the search.
    """

    def __init__(
        self, table: TrigramTable, pair: Pair, depth: int, along_path: bool = False
    ) -> None:
        self.pairs, self.depth, self.along_path = table.pairs, depth, along_path
        self.root = _Node(pair)

    def run(self, iterations: int, chance: random.Random) -> None:
        """Select, expand, roll out, and back up."""
        for _ in range(iterations):
            node, path = self.root, [self.root]
            while node.children and len(path) < self.depth:
                node = node.chosen()
                path.append(node)
            after = self.pairs.get(node.pair)
            if after and len(path) < self.depth:
                last = node.pair[1]
                node.children = [_Node((last, token), p) for token, p in after.items()]
                path.append(node.children[-1])
            value = self._value([node.pair for node in path], chance)
            for node in path:
                node.visits += 1
                node.score += value

    def _value(self, state: list[Pair], chance: random.Random) -> float:
        """What a continuation is worth that is completed by chance."""
        while len(state) < self.depth and (after := self.pairs.get(state[-1])):
            token = chance.choices(list(after), list(after.values()))[0]
            state.append((state[-1][1], token))
        value = 1.0
        for pair, following in pairwise(state):
            value += self.pairs[pair].get(following[int(self.along_path)], 0.0)
        return value

    def paths(self, count: int) -> list[list[int]]:
        """The most visited continuations, each with its most probable next token, best first."""
        found: list[tuple[int, list[int]]] = []

        def collect(node: _Node, words: list[int]) -> None:
            found.append((node.visits, words))
            for child in node.children:
                collect(child, [*words, child.pair[1]])

        collect(self.root, [])
        found.sort(key=lambda entry: -entry[0])
        longer: dict[tuple[int, ...], None] = {}
        for _, words in found[:count]:
            if words:
                pair = (words[-2] if len(words) > 1 else self.root.pair[1], words[-1])
                longer[(*words, *_likeliest(self.pairs.get(pair)))] = None
        return [list(path) for path in longer]


def _likeliest(after: dict[int, float] | None) -> list[int]:
    return [max(after, key=after.__getitem__)] if after else []


def cut_paths(paths: list[list[int]], most: int, rule: str) -> list[list[int]]:
    """Leave paths out until they have at most so many tokens.

    Args:
        paths: best first.
        most: sum of the numbers of distinct tokens of the paths.
        rule: ``diverse`` leaves out those with the most distinct tokens, as the authors do;
            ``visits`` the last ones.
    """
    sizes = [len(set(path)) for path in paths]
    order = list(range(len(paths)))[::-1]
    if rule == "diverse":
        order.sort(key=lambda place: -sizes[place])
    total, gone = sum(sizes), set()
    for place in order:
        if total <= most:
            break
        total -= sizes[place]
        gone.add(place)
    return [path for place, path in enumerate(paths) if place not in gone]


def tree_of_paths(paths: Sequence[Sequence[int]], root: int, most: int) -> tuple[Tree, list[int]]:
    """A tree from paths of tokens, and the tokens of its nodes; at most so many below the root,
    the shallow ones first."""
    index: dict[tuple[int, ...], int] = {(): 0}
    parents, tokens = [-1], [root]
    for depth in range(1, 1 + max(map(len, paths), default=0)):
        for path in paths:
            start = tuple(path[:depth])
            if len(start) == depth and start not in index and len(tokens) <= most:
                index[start] = len(tokens)
                parents.append(index[start[:-1]])
                tokens.append(start[-1])
    return Tree(parents), tokens


@register_method
class ADED(Method):
    """Candidates are found by a search over a table, and what becomes text strengthens it.

    The object keeps its table from one call of :func:`zoo.decoding.generate` to the next.

    Args:
        table: file of a table, see :class:`TrigramTable`; by default it starts empty.
        learn: False leaves the table as it is.
        search: ``tree``, or ``greedy`` for the most probable continuation alone.
        iterations: of the search.
        depth: pairs of a continuation; one token more is added behind it.
        paths: continuations that are kept.
        nodes: candidates of a pass, at most.
        cut: which continuations are left out where there are too many; see :func:`cut_paths`.
        along_path: see :class:`TreeSearch`.
        limit: most pairs of the table.
        seed: of the search.
    """

    name = "aded"
    proposer = "a search over a table of what followed what"

    def __init__(
        self,
        table: str | Path | TrigramTable | None = None,
        learn: bool = True,
        search: Literal["tree", "greedy"] = "tree",
        iterations: int = 150,
        depth: int = 4,
        paths: int = 24,
        nodes: int = 64,
        cut: Literal["diverse", "visits"] = "diverse",
        along_path: bool = False,
        limit: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        if search not in ("tree", "greedy") or cut not in ("diverse", "visits"):
            raise ZooError(
                f"search is {search!r} and cut {cut!r}: expected tree or greedy, and diverse or "
                "visits"
            )
        if min(iterations, depth - 1, paths, nodes, limit) < 1:
            raise ZooError(
                f"iterations {iterations}, depth {depth}, paths {paths}, nodes {nodes}, limit "
                f"{limit}: expected a depth of 2 or more, and 1 or more of the others"
            )
        if table is None or isinstance(table, TrigramTable):
            self.table = table or TrigramTable()
        else:
            self.table = TrigramTable.read(table)
        self.table.limit = limit
        self.learn, self.search, self.along_path = learn, search, along_path
        self.iterations, self.depth, self.paths, self.nodes = iterations, depth, paths, nodes
        self.cut, self.seed = cut, seed
        self._fits = 0  # the vocabulary that the table was compared with

    def save(self, file: str | Path) -> None:
        """Write the table, for the argument ``table``."""
        self.table.save(file)

    def load(self, model: nn.Module) -> None:
        """Refuse a table of another vocabulary."""
        vocabulary = text_config(model).vocab_size
        if vocabulary == self._fits:  # what was entered since is the target's
            return
        if (largest := self.table.largest()) >= vocabulary:
            raise ZooError(
                f"the table has token {largest}, the target only {vocabulary} tokens: it was made "
                "with another tokenizer"
            )
        self._fits = vocabulary

    def start(self, run: Run, prompt: Scores) -> None:
        """Begin the search's random numbers."""
        self._chance = random.Random(self.seed)

    def propose(self, run: Run) -> Draft:
        """Strengthen what stands at the ends of the texts, then search behind them."""
        trees, rows = [], []
        for sequence in run.sequences:
            if self.learn:
                self.table.strengthen(sequence)
            paths = cut_paths(self._paths(sequence), self.nodes, self.cut)
            tree, tokens = tree_of_paths(paths, sequence[-1], self.nodes)
            trees.append(tree)
            rows.append(tokens)
        width = max(map(len, rows))
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        return Draft(trees, torch.tensor(padded, device=run.target.device))

    def _paths(self, sequence: Sequence[int]) -> list[list[int]]:
        """Continuations of a text, best first."""
        if len(sequence) < 2:
            return []
        pair = (sequence[-2], sequence[-1])
        if self.search == "tree":
            found = TreeSearch(self.table, pair, self.depth, self.along_path)
            found.run(self.iterations, self._chance)
            return found.paths(self.paths)
        words: list[int] = []
        while len(words) < self.depth and (after := self.table.pairs.get(pair)):
            words += _likeliest(after)
            pair = (pair[1], words[-1])
        return [words] if words else []
