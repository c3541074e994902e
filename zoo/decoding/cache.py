"""The key-value cache under all methods: preallocated, and able to keep one path of a tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from zoo.ops.tree_attention import commit_path

FIRST_CAPACITY = 256


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers that double when they are full."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember dtype and device of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, n, D]`` and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        buffers = self._reserve(end, key_states, value_states)
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.crop(end)
        return self.keys, self.values

    def _reserve(self, size: int, *like: Tensor) -> tuple[Tensor, Tensor]:
        if self._buffers is None or self._buffers[0].shape[2] < size:
            capacity = max(FIRST_CAPACITY, 2 * size)
            # zeros: what nobody wrote is masked, and must not be NaN
            grown = [t.new_zeros(*t.shape[:2], capacity, t.shape[3]) for t in like]
            if self._buffers is not None:
                for new, old in zip(grown, self._buffers, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            self._buffers = (grown[0], grown[1])
        return self._buffers

    def commit(self, lengths: Tensor, start: Tensor, path: Tensor, count: Tensor, end: int) -> None:
        """Keep the nodes of ``path``; see :func:`zoo.ops.tree_attention.commit_path`."""
        if self._buffers is not None:
            commit_path(*self._buffers, lengths, path, count, start)
            self.crop(end)

    def select(self, rows: Tensor, end: int) -> None:
        """Keep these sequences and the first ``end`` slots."""
        if self._buffers is not None:
            keys, values = (buffer.index_select(0, rows) for buffer in self._buffers)
            self._buffers = (keys, values)
            self.crop(end)

    def taken(self, rows: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Copies of the first ``end`` slots of these sequences."""
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def put(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Replace the first slots of these sequences by ``[n, H, T, D]``."""
        for own, new in ((self.keys, keys), (self.values, values)):
            own[rows, :, : new.shape[2]] = new

    def crop(self, length: int) -> None:
        """Forget what lies behind the first ``length`` slots."""
        if length < 0:  # how many to remove, in newer versions of transformers
            length += self.length
        self.length = length
        if self._buffers is not None:
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def get_seq_length(self, *args: Any) -> int:
        """Slots in use."""
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Keys that the next queries meet, and the slot of the first."""
        if isinstance(query_length, Tensor):  # cache positions, in older versions of transformers
            query_length = query_length.shape[0]
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length


class TreeCache(Cache):
    """A cache object for any causal LM of transformers; sliding layers keep all their keys too."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=TreeCacheLayer)

    def commit(self, lengths: Tensor, start: int, path: Tensor, count: Tensor, end: int) -> None:
        """In every layer keep the accepted nodes only.

        Args:
            lengths: int64 ``[B]``, slots of the prefix of each sequence.
            start: slot of the tree's first node.
            path: int64 ``[B, P]``, accepted nodes of each sequence, ascending.
            count: int64 ``[B]``, how many of them count.
            end: slots in use afterwards, the longest of the new prefixes.
        """
        starts = torch.full_like(lengths, start)
        for layer in self.layers:
            layer.commit(lengths, starts, path, count, end)

    def settle(self, length: int) -> None:
        """Told when the first ``length`` slots of every sequence are decided."""

    def select(self, rows: Tensor, end: int) -> None:
        """Keep these sequences and the first ``end`` slots."""
        for layer in self.layers:
            layer.select(rows, end)
