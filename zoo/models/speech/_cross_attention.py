"""Attention of one sequence over another, which is read once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import KeyValues


class CrossAttention(nn.Module):
    """Multi-head attention over keys and values of :meth:`read`.

    Args:
        d_model: width of both sequences.
        num_heads: heads.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ZooError(f"{num_heads} heads do not divide a width of {d_model}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.kv_proj = nn.Linear(d_model, 2 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def read(self, memory: Tensor, lengths: Tensor) -> KeyValues:
        """Keys and values of sequences [B, T, C] that end together, padding before the shorter."""
        k, v = (self._heads(t) for t in self.kv_proj(memory).chunk(2, dim=-1))
        return KeyValues(k, v, lengths.tolist())

    def forward(self, x: Tensor, state: KeyValues) -> Tensor:
        """[B, U, C] to the same."""
        mask = None if state.padded is None else ~state.padded[:, None, None]
        q = self._heads(self.q_proj(x))
        y = F.scaled_dot_product_attention(q, state.keys, state.values, mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, n, P]
