"""Trees over recurrent models: the state is copied wherever the tree branches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding.session import Scores, Session
from zoo.errors import ZooError
from zoo.layers.cache import Cache
from zoo.models.language._split_decoder import cache_name


def is_recurrent(model: nn.Module) -> bool:
    """Whether the model keeps a state of constant size in place of keys."""
    # transformers marks such models; ours make their states themselves
    return getattr(model, "_is_stateful", hasattr(model, "allocate_cache"))


class RecurrentSession(Session):
    """A state-space model, ours or of transformers (Mamba, Mamba-2, Falcon-Mamba), or one that
    mixes recurrent layers with attention (Jamba).

    Nodes of one depth go through the model together, each from a copy of its parent's state; so a
    tree costs one pass for each of its levels, and memory for one state for each of its nodes. The
    result is exact, but a chain or a tree is not scored in less time than its tokens one by one.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__(model, batch_size)
        self._name = cache_name(model.forward)
        self._states: list[Any] = [None] * batch_size  # of the committed part
        self._nodes: list[list[Any]] = [[] for _ in range(batch_size)]  # of the open nodes

    def advance(self, rows: Sequence[Sequence[int]], hidden: int | None = None) -> Scores:
        """Read decided tokens."""
        logits, states = [], []
        for row, tokens in enumerate(rows):
            state, outputs = self._states[row], []
            if state is None:
                out = self._call(torch.tensor([list(tokens)], device=self.device), None, hidden)
                state = getattr(out, self._name)
                outputs.append(out)
            else:
                state = copy.deepcopy(state)
                for token in tokens:
                    out = self._call(torch.tensor([[token]], device=self.device), state, hidden)
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
        pending = [(row, node) for row in range(self.batch_size) for node in range(tokens.shape[1])]
        for nodes in self._nodes:
            nodes.extend([None] * tokens.shape[1])
        logits: Tensor | None = None
        states: Tensor | None = None
        while pending:
            known = [self._state(row, parents_list[row][node]) for row, node in pending]
            # keys of attention layers stack only where they are equally many
            size = min(_size(state) for state in known if state is not None)
            ready, waiting = [], []
            for place, state in zip(pending, known, strict=True):
                together = state is not None and _size(state) == size
                (ready if together else waiting).append(place)
            batch = torch.tensor([[token_list[r][n]] for r, n in ready], device=self.device)
            cache = _stack([self._state(r, parents_list[r][n]) for r, n in ready])
            out = self._call(batch, cache, hidden)
            index = torch.tensor(ready, device=self.device).T
            if logits is None:
                logits = out.logits.new_zeros(*tokens.shape, out.logits.shape[-1])
            logits[index[0], index[1]] = out.logits[:, -1]
            if hidden is not None:
                last = out.hidden_states[hidden][:, -1]
                if states is None:
                    states = last.new_zeros(*tokens.shape, last.shape[-1])
                states[index[0], index[1]] = last
            for place, (row, node) in enumerate(ready):
                self._nodes[row][first + node] = _row(getattr(out, self._name), place)
            pending = waiting
        assert logits is not None
        return Scores(logits, states)

    def _state(self, row: int, parent: int) -> Any:
        # a padding node may start anywhere
        return self._states[row] if parent < 0 else self._nodes[row][parent]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Go on from the state of each path's last node."""
        for row, path in enumerate(paths):
            if len(path):
                self._states[row] = self._nodes[row][path[-1]]
                self.lengths[row] += len(path)
            self._nodes[row] = []

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        self.lengths = [self.lengths[row] for row in rows]
        self._states = [self._states[row] for row in rows]
        self._nodes = [self._nodes[row] for row in rows]

    def _call(self, tokens: Tensor, cache: Any, hidden: int | None) -> Any:
        self.count(tokens.numel())
        out = self.model(
            input_ids=tokens,
            use_cache=True,
            output_hidden_states=hidden is not None,
            **{self._name: cache},
        )
        # rows that only fill up the embedding are no tokens
        out.logits = out.logits[..., : self.model.config.vocab_size]
        return out


def _map(value: Any, function: Any, *others: Any) -> Any:
    """Apply ``function`` to every tensor inside a cache, and copy the rest."""
    if isinstance(value, Tensor):
        return function(value, *others)
    if isinstance(value, dict):
        return {key: _map(v, function, *(o[key] for o in others)) for key, v in value.items()}
    if isinstance(value, list):
        return [_map(v, function, *(o[i] for o in others)) for i, v in enumerate(value)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, torch.device, torch.dtype)):
        result = copy.copy(value)
        for key, v in vars(value).items():
            setattr(result, key, _map(v, function, *(getattr(o, key) for o in others)))
        return result
    return value


def _size(cache: Any) -> int:
    """Number of keys in a cache of transformers; ours stack whatever they hold."""
    if isinstance(cache, Cache):
        return 0
    keys = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", ())]
    return max((k.shape[2] for k in keys if isinstance(k, Tensor)), default=0)


def _row(cache: Any, row: int) -> Any:
    """The state of one sequence of a batch."""
    if isinstance(cache, Cache):
        return cache.select([row])
    return _map(cache, lambda tensor: tensor[row : row + 1].clone())


def _stack(caches: list[Any]) -> Any:
    """States of single sequences as one batch."""
    if caches[0] is None:
        raise ZooError("the model has read nothing yet: read the prompt first")
    if isinstance(caches[0], Cache):
        return Cache.stack(caches)
    return _map(caches[0], lambda *tensors: torch.cat(tensors), *caches[1:])
