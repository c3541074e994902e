"""Attention of a draft tree: cases and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.case import Case, Inputs, Peer, Work, randn
from zoo.ops.tree_attention import pack_ancestors, tree_attention, tree_mask, unpack_ancestors


def _sdpa() -> Callable[[Inputs], Any]:
    masks: dict[int, Tensor] = {}

    def run(inputs: Inputs) -> Tensor:
        """PyTorch's attention with a boolean mask, made once."""
        q, k, v, kv_len, bits = (inputs[n] for n in ("q", "k", "v", "kv_len", "anc_bits"))
        if id(bits) not in masks:
            masks[id(bits)] = tree_mask(kv_len, bits, kv_len, k.shape[2])[:, None]
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=masks[id(bits)], enable_gqa=grouped
        )

    return run


def _flex() -> Callable[[Inputs], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    masks: dict[int, Any] = {}

    def run(inputs: Inputs) -> Any:
        """FlexAttention, compiled; its block mask is made once."""
        q, k, v, kv_len, bits = (inputs[n] for n in ("q", "k", "v", "kv_len", "anc_bits"))
        if id(bits) not in masks:
            ancestors = unpack_ancestors(bits, q.shape[2])

            def visible(b: Tensor, h: Tensor, i: Tensor, s: Tensor) -> Tensor:
                node = s - kv_len[b]
                return (node < 0) | ancestors[b, i, node.clamp(min=0)]

            masks[id(bits)] = create_block_mask(
                visible, q.shape[0], None, q.shape[2], k.shape[2], device=q.device.type
            )
        grouped = q.shape[1] != k.shape[1]
        return compiled(q, k, v, block_mask=masks[id(bits)], enable_gqa=grouped)

    return run


@dataclass(frozen=True, kw_only=True)
class TreeAttention(Case):
    """A binary draft tree of ``nodes`` behind a cache of ``prefix`` keys."""

    batch: int = 1
    nodes: int = 64
    prefix: int = 2048
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128

    op: ClassVar[str] = "tree_attention"
    peers: ClassVar[dict[str, Peer]] = {
        "SDPA with a mask": Peer(_sdpa),
        "FlexAttention": Peer(_flex, devices=("cuda",)),
    }

    def inputs(self, like: Tensor) -> Inputs:
        """The cache has room for the prefix and the tree, no more."""
        slots = self.prefix + self.nodes
        ancestors = torch.eye(self.nodes, dtype=torch.bool)
        for node in range(1, self.nodes):
            ancestors[node] |= ancestors[(node - 1) // 2]
        bits = pack_ancestors(ancestors.expand(self.batch, -1, -1))
        return {
            "q": randn(like, self.batch, self.heads, self.nodes, self.head_dim),
            "k": randn(like, self.batch, self.kv_heads, slots, self.head_dim),
            "v": randn(like, self.batch, self.kv_heads, slots, self.head_dim),
            "kv_len": torch.full((self.batch,), self.prefix, device=like.device),
            "anc_bits": bits.to(like.device),
        }

    def run(self, inputs: Inputs) -> Tensor:
        """The op."""
        return tree_attention(**inputs)

    def work(self, itemsize: int) -> Work:
        """Two products of queries and keys; the cache is read once."""
        slots = self.prefix + self.nodes
        scores = self.batch * self.heads * self.nodes * slots
        rows = 2 * self.kv_heads * slots + 2 * self.heads * self.nodes
        return Work(
            bytes=itemsize * self.batch * rows * self.head_dim,
            exponentials=scores,
            matmul_flops=4 * scores * self.head_dim,
        )
