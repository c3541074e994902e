"""Attention with rotary positions and a growing memory, for decoders that mix it with SSMs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import KeyValues
from zoo.layers.plain import like
from zoo.layers.short_conv import make_short_conv, short_conv


def rotary(
    x: Tensor, positions: Tensor, dim: int, base: float = 10000.0, interleaved: bool = False
) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of the first ``dim`` channels.

    Args:
        x: queries or keys ``[B, H, n, P]``.
        positions: ``[n]`` or ``[B, n]``.
        dim: how many of the P channels are turned, an even number.
        base: of the wave lengths.
        interleaved: pairs are neighbours (GPT-J), not from both halves (GPT-NeoX, Llama).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** (-torch.arange(0, dim, 2, device=x.device, dtype=exact) / dim)
    angles = positions.to(exact)[..., None] * frequencies  # [(B,) n, dim / 2]
    angles = angles if positions.dim() == 1 else angles[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned, rest = x[..., :dim], x[..., dim:]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned, rest], dim=-1)


def next_positions(state: KeyValues | None, n: int, device: torch.device) -> Tensor:
    """Positions of n new tokens: ``[n]``, or ``[B, n]`` where sequences differ in length."""
    span = torch.arange(n, device=device)
    if state is None:
        return span
    if len(set(state.lengths)) == 1:
        return span + state.lengths[0]
    return span + torch.tensor(state.lengths, device=device)[:, None]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: KeyValues | None = None,
    seq_idx: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of new tokens over themselves and those remembered.

    Args:
        q: queries of the new tokens ``[B, H, n, P]``.
        k, v: their keys and values ``[B, G, n, P]``; G divides H, and head h reads group h // (H /
            G).
        state: what came before; takes in k and v.
        seq_idx: ``[B, n]``, tokens see their own packed sequence alone.
        causal: tokens see those before them and themselves; else all.
        scale: of the scores, by default P^-½.
    """
    new = q.shape[2]
    padded = None
    if state is not None:
        k, v = state.append(k, v)
        padded = state.padded
    mask = None
    if (padded is not None or seq_idx is not None or k.shape[2] != new) and (
        new > 1 or padded is not None
    ):
        mask = q.new_ones(new, k.shape[2], dtype=torch.bool)
        mask = mask.tril(k.shape[2] - new) if causal else mask
        if padded is not None:
            mask = mask & ~padded[:, None, None]
        if seq_idx is not None:
            mask = mask & (seq_idx[:, None, :, None] == seq_idx[:, None, None])
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal and mask is None and new > 1, scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )  # fmt: skip


class SelfAttention(nn.Module):
    """Multi-head attention of Mamba's hybrid models, with the parameters of the authors' ``MHA``.

    Args:
        d_model: width of the tokens.
        num_heads: heads of the queries.
        num_heads_kv: heads of keys and values, by default as many.
        head_dim: P, by default d_model / num_heads.
        mlp_dim: width of a gated MLP beside the attention, rounded up to a multiple of 256; 0 for
            none.
        qkv_proj_bias, out_proj_bias: whether the projections have a bias.
        softmax_scale: by default P^-½.
        causal: tokens see those before them and themselves; else all.
        d_conv: width of a short convolution of queries, keys and values; 0 for none.
        rotary_emb_dim: channels of a head that :func:`rotary` turns; 0 for none.
        rotary_emb_base, rotary_emb_interleaved: see there.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_heads_kv = num_heads, num_heads_kv or num_heads
        self.head_dim = head_dim or d_model // num_heads
        if num_heads % self.num_heads_kv or (head_dim is None and d_model % num_heads):
            raise ZooError(
                f"attention of width {d_model} with {num_heads} heads over {self.num_heads_kv}: "
                "expected numbers that divide"
            )
        self.causal, self.softmax_scale = causal, softmax_scale
        self.rotary_dim, self.rotary_base = rotary_emb_dim, rotary_emb_base
        self.rotary_interleaved = rotary_emb_interleaved
        self.mlp_dim = -(-mlp_dim // 256) * 256
        self.qkv_dim = self.head_dim * (num_heads + 2 * self.num_heads_kv)
        self.d_conv = d_conv
        out_dim = self.head_dim * num_heads + self.mlp_dim // 2
        self.in_proj = nn.Linear(d_model, self.qkv_dim + self.mlp_dim, bias=qkv_proj_bias)
        self.conv1d = make_short_conv(self.qkv_dim, d_conv) if d_conv else None
        self.out_proj = nn.Linear(out_dim, d_model, bias=out_proj_bias)

    def forward(
        self, x: Tensor, state: KeyValues | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, n, d_model] to the same; ``state`` of :meth:`allocate_state` takes the tokens in."""
        if state is not None and (seq_idx is not None or not self.causal):
            raise ZooError(
                "keys and values are kept for one sequence that is read causally: expected "
                f"causal=True, here {self.causal}, and no seq_idx"
            )
        qkv = self.in_proj(x)
        qkv, mlp = qkv.split([qkv.shape[-1] - self.mlp_dim, self.mlp_dim], dim=-1)
        if self.conv1d is not None:
            qkv = short_conv(qkv, self.conv1d, None, seq_idx=seq_idx, state=state)
        heads = [self.num_heads, self.num_heads_kv, self.num_heads_kv]
        qkv = qkv.unflatten(-1, (sum(heads), -1)).transpose(1, 2)
        q, k, v = qkv.split(heads, dim=1)  # [B, heads, n, P]
        if self.rotary_dim:
            where = next_positions(state, x.shape[1], x.device)
            turn = (where, self.rotary_dim, self.rotary_base, self.rotary_interleaved)
            q, k = rotary(q, *turn), rotary(k, *turn)
        y = attend(q, k, v, state, seq_idx, self.causal, self.softmax_scale)
        y = y.transpose(1, 2).flatten(2)
        if self.mlp_dim:
            up, gate = mlp.chunk(2, dim=-1)
            y = torch.cat([y, up * F.silu(gate)], dim=-1)
        return self.out_proj(y)

    def allocate_state(self, batch_size: int) -> KeyValues:
        """The state before the first token."""
        weight, tail = like(self.in_proj), None
        if self.conv1d is not None:
            tail = weight.new_zeros(batch_size, self.qkv_dim, self.d_conv)
        return KeyValues.empty(batch_size, self.num_heads_kv, self.head_dim, weight, tail)
