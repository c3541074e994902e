"""Trees over models that keep a memory of their own: it is copied where the tree branches."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from zoo.decoding.session import Scores, Session
from zoo.decoding.tree import PADDING
from zoo.errors import ZooError
from zoo.layers.cache import Cache
from zoo.models.language._split_decoder import cache_name

#: What a cache may hold that belongs to all sequences.
SHARED = (nn.Module, PretrainedConfig, type, FunctionType, torch.device, torch.dtype)


def is_recurrent(model: nn.Module) -> bool:
    """Whether the model keeps a state of constant size in place of keys."""
    # transformers marks such models; ours make their states themselves
    return getattr(model, "_is_stateful", hasattr(model, "allocate_cache"))


class RecurrentSession(Session):
    """A model that goes on from its own memory, whatever that is: the memory is copied.

    State-space models, ours or of transformers (Mamba, Mamba-2, Falcon-Mamba), those that mix
    recurrent or convolutional layers with attention (Jamba, Bamba, LFM2), and transformers whose
    positions follow from the number of tokens in their cache (ALiBi, T5).

    Nodes of one depth go through the model together, each from a copy of its parent's state; so a
    tree costs one pass for each of its levels, and memory for one state for each of its nodes. The
    result is exact, but a chain or a tree is not scored in less time than its tokens one by one.

    Args:
        model, batch_size: see :class:`Session`.
        positions: tell the model which positions its tokens stand at.
    """

    kind = "copied states"

    def __init__(self, model: nn.Module, batch_size: int, positions: bool = False) -> None:
        super().__init__(model, batch_size)
        self._name = cache_name(model.forward)
        self._positions = positions
        self._states: list[Any] = [None] * batch_size  # of the committed part
        self._nodes: list[list[Any]] = [[] for _ in range(batch_size)]  # of the open nodes
        self._depths: list[list[int]] = [[] for _ in range(batch_size)]

    def advance(self, rows: Sequence[Sequence[int]], hidden: int | None = None) -> Scores:
        """Read decided tokens."""
        logits, states = [], []
        for row, tokens in enumerate(rows):
            state, outputs = self._states[row], []
            if state is None:
                out = self._call([list(tokens)], None, [row], [0], hidden)
                state = getattr(out, self._name)
                outputs.append(out)
            else:
                state = copy.deepcopy(state)
                for place, token in enumerate(tokens, start=self.lengths[row]):
                    out = self._call([[token]], state, [row], [place], hidden)
                    state = getattr(out, self._name)
                    outputs.append(out)
            self._states[row] = state
            self.lengths[row] += len(tokens)
            logits.append(outputs[-1].logits[:, -1:])
            if hidden is not None:
                states.append(torch.cat([out.hidden_states[hidden] for out in outputs], dim=1)[0])
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True) if states else None
        return Scores(torch.cat(logits), padded)

    def grow(self, tokens: Tensor, parents: Tensor, hidden: int | None = None) -> Scores:
        """Add nodes, level by level."""
        first = len(self._nodes[0])
        parents_list, token_list = parents.tolist(), tokens.tolist()
        levels: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, nodes in enumerate(self._nodes):
            nodes.extend([None] * tokens.shape[1])
            for place, parent in enumerate(parents_list[row]):
                depth = self._depths[row][parent] + 1 if parent >= 0 else 0
                self._depths[row].append(depth)
                position = self.lengths[row] + depth
                if parent != PADDING and position <= self.last_position:
                    levels[self._together(row, position)].append((row, place))
        logits: Tensor | None = None
        states: Tensor | None = None
        for _, level in sorted(levels.items()):
            memory = _stack([self._state(r, parents_list[r][n]) for r, n in level])
            out = self._call(
                [[token_list[r][n]] for r, n in level],
                memory,
                [r for r, _ in level],
                [self.lengths[r] + self._depths[r][first + n] for r, n in level],
                hidden,
            )
            index = torch.tensor(level, device=self.device).T
            if logits is None:
                logits = out.logits.new_zeros(*tokens.shape, out.logits.shape[-1])
            logits[index[0], index[1]] = out.logits[:, -1]
            if hidden is not None:
                last = out.hidden_states[hidden][:, -1]
                if states is None:
                    states = last.new_zeros(*tokens.shape, last.shape[-1])
                states[index[0], index[1]] = last
            memory = getattr(out, self._name)
            for place, (row, node) in enumerate(level):
                self._nodes[row][first + node] = _row(memory, place, len(level))
        return self.filled(logits, states, (len(token_list), tokens.shape[1]), hidden)

    def _together(self, row: int, position: int) -> int:
        """Nodes for which this is the same number may go through the model together."""
        # what grows with the text can be stacked only where it has grown equally far
        return position - self.lengths[row] if self._constant_size(row) else position

    def _constant_size(self, row: int) -> bool:
        return isinstance(self._states[row], Cache) or not _has_keys(self._states[row])

    def _state(self, row: int, parent: int) -> Any:
        return self._states[row] if parent < 0 else self._nodes[row][parent]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Go on from the state of each path's last node."""
        for row, path in enumerate(paths):
            if len(path):
                self._states[row] = self._nodes[row][path[-1]]
                self.lengths[row] += len(path)
            self._nodes[row], self._depths[row] = [], []

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        super().select(rows)
        self._states = [self._states[row] for row in rows]
        self._nodes = [self._nodes[row] for row in rows]
        self._depths = [self._depths[row] for row in rows]

    def _call(
        self,
        tokens: list[list[int]],
        memory: Any,
        rows: list[int],
        starts: list[int],
        hidden: int | None,
    ) -> Any:
        ids = torch.tensor(tokens, device=self.device)
        self.count(ids.numel())
        arguments = {self._name: memory} | self.inputs_for(rows)
        if self._positions:
            step = torch.arange(ids.shape[1], device=self.device)
            arguments["position_ids"] = torch.tensor(starts, device=self.device)[:, None] + step
        if hidden is not None:
            arguments["output_hidden_states"] = True
        return self.of_tokens(self.model(input_ids=ids, use_cache=True, **arguments))


def _map(value: Any, function: Any, *others: Any) -> Any:
    """Apply ``function`` to every tensor inside a cache, and copy the rest."""
    if isinstance(value, Tensor):
        return function(value, *others)
    if isinstance(value, dict):
        return {key: _map(v, function, *(o[key] for o in others)) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        parts = (_map(v, function, *(o[i] for o in others)) for i, v in enumerate(value))
        return type(value)(parts)
    if isinstance(value, SHARED) or not hasattr(value, "__dict__"):
        return value
    result = copy.copy(value)
    for key, v in vars(value).items():
        vars(result)[key] = _map(v, function, *(vars(o)[key] for o in others))
    return result


def _has_keys(memory: Any) -> bool:
    """Whether a cache of transformers holds keys, which grow with the text."""
    layers = getattr(memory, "layers", None)
    if layers is None:
        return True  # who knows
    return any(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers)


def _row(memory: Any, row: int, rows: int) -> Any:
    """The state of one sequence of a batch."""
    if isinstance(memory, Cache):
        return memory.select([row])
    return _map(
        memory,
        lambda t: (t[row : row + 1] if t.dim() and len(t) == rows else t).clone(),
    )


def _stack(caches: list[Any]) -> Any:
    """States of single sequences as one batch."""
    if caches[0] is None:
        raise ZooError("the model has read nothing yet: read the prompt first")
    if isinstance(caches[0], Cache):
        return Cache.stack(caches)
    # what is no batch of one is the same for all
    return _map(
        caches[0],
        lambda t, *others: torch.cat([t, *others]) if t.dim() and len(t) == 1 else t.clone(),
        *caches[1:],
    )
