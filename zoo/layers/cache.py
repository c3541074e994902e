"""What the layers of a sequence model remember between calls, in one cache object.

A recurrent layer's state has one size however long the sequence gets; an attention layer's keys and
values grow with it. A model builds a :class:`Cache` with one state for each layer; the layers
replace their tensors as they read on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from zoo.errors import ZooError


class LayerState(ABC):
    """The memory of one layer for a batch of sequences."""

    #: Whether the state's size is the same after any number of steps.
    constant_size: bool

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What is kept; the first dimension is the batch."""

    @abstractmethod
    def clone(self) -> LayerState:
        """A copy that shares no memory."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> LayerState:
        """A copy of these sequences, in this order; one may come several times."""

    @classmethod
    @abstractmethod
    def stack(cls, states: Sequence) -> LayerState:
        """The batches of several states, one after the other."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Raises:
            ZooError: if the layer cannot.
        """


class ConstantState(LayerState):
    """Tensors that are replaced by those after what was read, and keep their size.

    A subclass names them: its constructor takes what :meth:`tensors` lists.
    """

    constant_size = True

    def clone(self) -> Self:
        """A copy that shares no memory."""
        return type(self)(*(tensor.clone() for tensor in self.tensors()))

    def select(self, rows: Sequence[int]) -> Self:
        """A copy of these sequences."""
        index = _index(rows, self.tensors()[0].device)
        return type(self)(*(tensor[index] for tensor in self.tensors()))

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """One batch after the other."""
        return cls(*map(torch.cat, zip(*(state.tensors() for state in states), strict=True)))

    def truncate(self, length: int) -> None:
        """Always an error: a recurrent state holds all it has read at once."""
        raise ZooError(
            f"a recurrent state cannot be cut back to {length} positions: keep a clone() of the "
            "cache at the place to return to"
        )


class RecurrentState(ConstantState):
    """State of one SSM layer.

    Attributes:
        conv: the last inputs of the short convolution, the newest last, ``[B, D, W]``; zero before
            the first. Mamba's authors keep W of them, one more than a step needs.
        ssm: state of the scan, ``[B, D, N]`` (Mamba-1) or ``[B, H, P, N]`` (Mamba-2), float32.
    """

    def __init__(self, conv: Tensor, ssm: Tensor) -> None:
        self.conv, self.ssm = conv, ssm

    def tensors(self) -> list[Tensor]:
        """Convolution tail and scan state."""
        return [self.conv, self.ssm]


class CellState(ConstantState):
    """States of one layer of recurrent cells.

    Attributes:
        states: ``[B, S, N, D]``, of N heads with S states each.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def tensors(self) -> list[Tensor]:
        """The states."""
        return [self.states]


class TensorState(ConstantState):
    """What a layer of one kind of memory, or of several, keeps.

    Attributes:
        parts: tensors, the first dimension of each the batch.
    """

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def tensors(self) -> list[Tensor]:
        """The parts."""
        return [*self.parts]


class KeyValues(LayerState):
    """Keys and values of one attention layer; it grows with the sequence.

    Sequences of different lengths end together: shorter ones have padding before them.

    Attributes:
        keys, values: ``[B, H, n, P]``.
        lengths: how many of the n belong to each sequence, the last ones.
        conv: as in :class:`RecurrentState`, if the layer has a short convolution.
    """

    constant_size = False

    def __init__(
        self, keys: Tensor, values: Tensor, lengths: Sequence[int], conv: Tensor | None = None
    ) -> None:
        self.keys, self.values, self.lengths, self.conv = keys, values, list(lengths), conv

    @classmethod
    def empty(
        cls, batch_size: int, heads: int, head_dim: int, like: Tensor, conv: Tensor | None = None
    ) -> KeyValues:
        """Nothing yet, in dtype and on the device of ``like``."""
        nothing = like.new_empty(batch_size, heads, 0, head_dim)
        return cls(nothing, nothing, [0] * batch_size, conv)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``[B, H, m, P]`` to every sequence; returns all keys and values, ``[B, H, n, P]``."""
        self.keys = torch.cat([self.keys.to(keys.dtype), keys], dim=2)
        self.values = torch.cat([self.values.to(values.dtype), values], dim=2)
        self.lengths = [length + keys.shape[2] for length in self.lengths]
        return self.keys, self.values

    @property
    def padded(self) -> Tensor | None:
        """Bool ``[B, n]``, where the padding of shorter sequences is; None if there is none."""
        size = self.keys.shape[2]
        if min(self.lengths) == size:
            return None
        device = self.keys.device
        return torch.arange(size, device=device) < size - _index(self.lengths, device)[:, None]

    def tensors(self) -> list[Tensor]:
        """Keys, values and the convolution's tail."""
        return [self.keys, self.values, *([] if self.conv is None else [self.conv])]

    def clone(self) -> KeyValues:
        """A copy that shares no memory."""
        return self.select(range(len(self.lengths)))

    def select(self, rows: Sequence[int]) -> KeyValues:
        """A copy of these sequences, with no more padding than they need."""
        index = _index(rows, self.keys.device)
        lengths = [self.lengths[row] for row in rows]
        start = self.keys.shape[2] - max(lengths, default=0)
        conv = None if self.conv is None else self.conv[index]
        return KeyValues(self.keys[index, :, start:], self.values[index, :, start:], lengths, conv)

    @classmethod
    def stack(cls, states: Sequence[KeyValues]) -> KeyValues:
        """One batch after the other, the shorter ones padded."""
        size = max(state.keys.shape[2] for state in states)

        def pad(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, size - x.shape[2], 0))

        tails = [state.conv for state in states if state.conv is not None]
        return cls(
            torch.cat([pad(state.keys) for state in states]),
            torch.cat([pad(state.values) for state in states]),
            [length for state in states for length in state.lengths],
            torch.cat(tails) if tails else None,
        )

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions of every sequence, which must be equally long."""
        if self.conv is not None or len(set(self.lengths)) > 1 or length > self.lengths[0]:
            raise ZooError(
                f"keys and values of {self.lengths} positions cannot be cut back to {length}: "
                "expected sequences of one length, at least that, and no convolution before them"
            )
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        self.lengths = [length] * len(self.lengths)


class Cache:
    """What a model remembers of the sequences that it has read.

    Args:
        layers: the states of its layers, in order.
    """

    def __init__(self, layers: Sequence[LayerState]) -> None:
        self.layers = list(layers)

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return self.layers[0].tensors()[0].shape[0]

    @property
    def constant_size(self) -> bool:
        """Whether the cache never grows."""
        return all(layer.constant_size for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Memory of all states."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors())

    def clone(self) -> Cache:
        """A copy that shares no memory, to come back to."""
        return Cache([layer.clone() for layer in self.layers])

    def select(self, rows: Sequence[int]) -> Cache:
        """A copy of these sequences, in this order; one may come several times (beam search)."""
        return Cache([layer.select(rows) for layer in self.layers])

    @classmethod
    def stack(cls, caches: Sequence[Cache]) -> Cache:
        """The sequences of several caches as one batch; they may be of different lengths."""
        layers = zip(*(cache.layers for cache in caches), strict=True)
        return cls([type(states[0]).stack(states) for states in layers])

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions; nothing changes if one layer cannot.

        Raises:
            ZooError: if a layer is recurrent, or the sequences are shorter or of several lengths.
        """
        for layer in self.layers:
            layer.select(range(self.batch_size)).truncate(length)
        for layer in self.layers:
            layer.truncate(length)


def _index(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long, device=device)
