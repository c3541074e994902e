"""Trees without a cache: every path is read from its beginning."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding.session import Scores, Session
from zoo.decoding.tree import PADDING


def full_pass(model: nn.Module, ids: Tensor, hidden: bool = False, **inputs: Any) -> Any:
    """The model's own forward over whole texts, without a cache.

    This is what every session has to agree with, node by node.

    Args:
        model: a causal LM.
        ids: int64 ``[B, T]``, texts of one length.
        hidden: whether all hidden states are wanted.
        inputs: more of the model's own arguments.
    """
    known = inspect.signature(model.forward).parameters
    if "use_cache" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        inputs["use_cache"] = False
    if hidden:
        inputs["output_hidden_states"] = True
    return model(input_ids=ids, **inputs)


class RecomputeSession(Session):
    """A model that cannot go on from what it has read, or not as the loop asks it to.

    Exact for every model that reads a text and says what follows it, at the price of reading all of
    it again for each tree.

    Args:
        model, batch_size: see :class:`Session`.
        alone: read a text of its own for every node, one by one. Otherwise the nodes of a path
            share one, and texts of one length a batch, which takes it that what the model says of a
            token depends neither on what follows nor on other texts.
    """

    kind = "recomputation"

    def __init__(self, model: nn.Module, batch_size: int, alone: bool = False) -> None:
        super().__init__(model, batch_size)
        self._alone = alone
        self._texts: list[list[int]] = [[] for _ in range(batch_size)]
        self._nodes: list[list[tuple[int, int]]] = [[] for _ in range(batch_size)]  # token, parent

    def advance(self, rows: Sequence[Sequence[int]], hidden: int | None = None) -> Scores:
        """Read decided tokens."""
        width = max(map(len, rows))
        if hidden is None:  # what follows the last token is all that is asked for
            wanted = [[len(tokens) - 1] for tokens in rows]
        else:
            wanted = [list(range(len(tokens))) for tokens in rows]
        for nodes, tokens in zip(self._nodes, rows, strict=True):
            nodes[:] = [(token, place - 1) for place, token in enumerate(tokens)]
        scores = self._score(wanted, width, hidden)
        self.commit([range(len(tokens)) for tokens in rows])
        last = [len(tokens) - 1 for tokens in rows]
        return Scores(scores.logits[range(len(last)), last][:, None], scores.hidden)

    def grow(self, tokens: Tensor, parents: Tensor, hidden: int | None = None) -> Scores:
        """Add nodes and read a text for each path that ends in one of them."""
        first, width = len(self._nodes[0]), tokens.shape[1]
        for nodes, row, above in zip(self._nodes, tokens.tolist(), parents.tolist(), strict=True):
            nodes.extend(zip(row, above, strict=True))
        wanted = [
            [place for place in range(width) if nodes[first + place][1] != PADDING]
            for nodes in self._nodes
        ]
        return self._score(wanted, width, hidden, first)

    def _path(self, row: int, node: int) -> list[int]:
        path = []
        while node >= 0:
            path.append(node)
            node = self._nodes[row][node][1]
        return path[::-1]

    def _score(
        self, wanted: list[list[int]], width: int, hidden: int | None, first: int = 0
    ) -> Scores:
        """Logits ``[B, width, V]`` at the wanted nodes ``first + place`` of each row."""
        texts: dict[Any, list[tuple[int, list[int]]]] = defaultdict(list)
        for row, places in enumerate(wanted):
            paths = {place: self._path(row, first + place) for place in places}
            # nothing behind the last position is ever asked for
            room = self.last_position + 1 - len(self._texts[row])
            paths = {place: path for place, path in paths.items() if len(path) <= room}
            inner = set() if self._alone else {n for path in paths.values() for n in path[:-1]}
            for place, path in paths.items():
                if first + place not in inner:
                    length = len(self._texts[row]) + len(path)
                    texts[(row, place) if self._alone else length].append((row, path))
        logits: Tensor | None = None
        states: Tensor | None = None
        for group in texts.values():
            ids = [self._texts[r] + [self._nodes[r][n][0] for n in path] for r, path in group]
            rows = [row for row, _ in group]
            batch = torch.tensor(ids, device=self.device)
            self.count(batch.numel())
            out = self.of_tokens(
                full_pass(self.model, batch, hidden is not None, **self.inputs_for(rows))
            )
            if logits is None:
                logits = out.logits.new_zeros(len(wanted), width, out.logits.shape[-1])
            if hidden is not None and states is None:
                layer = out.hidden_states[hidden]
                states = layer.new_zeros(len(wanted), width, layer.shape[-1])
            for text, (row, path) in enumerate(group):
                nodes = [n - first for n in (path[-1:] if self._alone else path) if n >= first]
                logits[row, nodes] = out.logits[text, -len(nodes) :]
                if states is not None:
                    states[row, nodes] = out.hidden_states[hidden][text, -len(nodes) :]
        return self.filled(logits, states, (len(wanted), width), hidden)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the tokens of each path."""
        for row, path in enumerate(paths):
            self._texts[row] = self._texts[row] + [self._nodes[row][node][0] for node in path]
            self.lengths[row] += len(path)
            self._nodes[row] = []

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        super().select(rows)
        self._texts = [self._texts[row] for row in rows]
        self._nodes = [[] for _ in rows]
