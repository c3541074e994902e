"""The layer that Hedgehog puts in an attention's place: feature maps, attentions, its state."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from zoo.errors import ZooError, check_choice
from zoo.layers.plain import like
from zoo.layers.precision import at_least_fp32
from zoo.ops import linear_attention

EPS = 1e-12


def _both(half: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.cat([half(y), half(-y)], dim=-1)


def _softmax(y: Tensor) -> Tensor:
    return y.softmax(-1)


def _exp(y: Tensor) -> Tensor:
    return (y - y.amax(-1, keepdim=True)).exp()


#: phi(y) by name. "softmax" and "exp" make 2 F0 features of F0; the others as many.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _both(_softmax),
    "softmax_half": _softmax,
    "exp": _both(_exp),
    "exp_half": _exp,
    "softmax_joint": lambda y: torch.cat([2 * y, -2 * y], dim=-1).softmax(-1),
    "relu": F.relu,
    "elu": lambda y: F.elu(y) + 1,
}


class HeadMatrices(nn.Module):
    """A matrix for each head, [B, H, L, P] to [B, H, L, F0].

    Args:
        num_heads, head_dim, feature_dim: H, P, F0.
        bias: one number for each head.
        identity: starts as the identity (the first F0 channels where F0 < P); else Kaiming-uniform.
        like: a tensor of the device and dtype that they get.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        feature_dim: int,
        bias: bool,
        identity: bool,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.layer = nn.Parameter(like.new_empty(num_heads, head_dim, feature_dim))
        self.bias = nn.Parameter(like.new_zeros(1, num_heads, 1, 1)) if bias else None
        if identity:
            with torch.no_grad():
                self.layer.copy_(torch.eye(head_dim, feature_dim, device=like.device))
        else:
            nn.init.kaiming_uniform_(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, L, P] to [B, H, L, F0]."""
        y = torch.einsum("hdf,bhld->bhlf", self.layer, x)
        return y if self.bias is None else y + self.bias


class FeatureMap(nn.Module):
    """phi(W x + b) of every head (arXiv 2402.04347, equations 5 and 6).

    Args:
        kind: of :data:`MAPS`.
        mlp: W and b, or nothing for the identity.
    """

    def __init__(self, kind: str, mlp: nn.Module) -> None:
        super().__init__()
        self.kind, self.mlp = kind, mlp

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, L, P] to positive features [B, H, L, F], float32."""
        return MAPS[self.kind](at_least_fp32(self.mlp(x))).clamp_min(EPS)


class LinearState(CacheLayerMixin):
    """What the layer remembers, as one of the layers of a transformers cache.

    Attributes:
        state: sums of phi(k) v and, in the last column, of phi(k), float32 ``[B, H, F, P + 1]``.
        keys, values, present: of a layer with a window, the tokens that are not in the state yet.
        seen: number of tokens.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.present: Tensor | None = None
        self.seen = 0

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing has to be known beforehand."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Attention with keys cannot go on from a state."""
        raise ZooError("a state of linear attention holds no keys: expected a converted layer")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens so far with the new ones, and the offset 0."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.seen

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def reset(self) -> None:
        """As before the first token."""
        self.state = self.keys = self.values = self.present = None
        self.seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these sequences, in this order."""
        for name in ("state", "keys", "values", "present"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, beam_idx.to(tensor.device)))


@dataclass
class Compared:
    """Both attentions of a layer on the same input.

    Attributes:
        scores: q·k before the softmax, ``[B, H, L, L]``.
        true, pred: weights of softmax attention and of the layer, ``[B, H, L, L]``, rows of 1.
        y_true, y_pred: what they give, ``[B, H, L, P]``.
    """

    scores: Tensor
    true: Tensor
    pred: Tensor
    y_true: Tensor
    y_pred: Tensor


class HedgehogAttention(nn.Module):
    r"""Causal linear attention with learned feature maps, in the place of a softmax attention.

    .. math::
        a_{ij} = \frac{\phi_q(q_i)\cdot\phi_k(k_j)}{\sum_{l \le i} \phi_q(q_i)\cdot\phi_k(k_l)}

    With ``window`` it is LoLCATs' hybrid (arXiv 2410.10254, section 3.3): the last tokens have
    softmax's weights times a learned factor of the head, all before them phi's, under one sum.

    Args:
        attention: of a Llama-style model of transformers; its projections become this layer's.
        feature_map: of :data:`MAPS`.
        feature_dim: F0, by default as many as channels of a head.
        learned: whether the map has a matrix.
        bias: whether it has a bias, one number a head.
        identity: the matrices start as the identity.
        window: tokens w of a softmax window; 0: none.
        terraced: the window of a token is its own block of w and the whole one before it, as in
            LoLCATs' models; else the last w tokens.
        window_factor: logit of the factor at the start.

    Raises:
        ZooError: if the attention is built otherwise, or a setting is impossible.
    """

    def __init__(
        self,
        attention: Any,
        feature_map: str = "softmax",
        feature_dim: int | None = None,
        learned: bool = True,
        bias: bool = False,
        identity: bool = True,
        window: int = 0,
        terraced: bool = True,
        window_factor: float = math.log(1 / 9),
    ) -> None:
        super().__init__()
        check_choice("feature_map", feature_map, MAPS)
        if window < 0 or (feature_dim is not None and feature_dim < 1):
            raise ZooError(
                f"window {window} and feature_dim {feature_dim}: expected 0 or more, 1 or more"
            )
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.q_norm, self.k_norm = (getattr(attention, f"{n}_norm", None) for n in "qk")
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        rotary = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if rotary is None or getattr(attention, "sliding_window", None):
            raise ZooError(
                f"{type(attention).__name__} cannot be converted: expected rotary positions over "
                "the whole text, as in Llama"
            )
        self.rotary = rotary
        weight = like(self.o_proj)
        heads = self.o_proj.in_features // self.head_dim

        def feature() -> FeatureMap:
            if not learned:
                return FeatureMap(feature_map, nn.Identity())
            size = self.head_dim if feature_dim is None else feature_dim
            mlp = HeadMatrices(heads, self.head_dim, size, bias, identity, weight)
            return FeatureMap(feature_map, mlp)

        self.feature_map_q, self.feature_map_k = feature(), feature()
        self.window, self.terraced = window, terraced
        self.window_factors = (
            nn.Parameter(weight.new_full((1, heads, 1, 1), window_factor)) if window else None
        )
        self.comparing: list[Compared] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The call of transformers' attention layers, [B, L, d] to the same.

        Args:
            hidden_states: tokens.
            position_embeddings: cosines and sines.
            attention_mask: [B, L], or [B, 1, L, S]; which tokens are padding is taken from it.
            cache, past_key_values: of transformers, by its name of today and before.
            kwargs: are not needed.
        """
        q, k, v = self.queries_keys_values(hidden_states, position_embeddings)
        present = _present(attention_mask, hidden_states)
        cache = past_key_values if cache is None else cache
        if self.comparing is not None:
            compared = self.compare(q, k, v, present)
            self.comparing.append(compared)
            y = compared.y_true
        else:
            state = None if cache is None else _state_of(cache, self.layer_idx)
            y = self._windowed(q, k, v, present, state) if self.window else self._linear(
                q, k, v, present, state
            )  # fmt: skip
        return self.o_proj(y.to(v.dtype).transpose(1, 2).flatten(2)), None

    def queries_keys_values(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """With rotary positions, and keys and values repeated, [B, H, L, P] each."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = self.rotary(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        repeats = q.shape[1] // k.shape[1]
        return q, *(t.repeat_interleave(repeats, 1) for t in (k, v.transpose(1, 2)))

    def compare(self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None) -> Compared:
        """Both attentions over a text from its beginning; quadratic, for distillation.

        Args:
            q, k, v: of :meth:`queries_keys_values`.
            present: ``[B, L]``, False for padding.
        """
        q, k, v = (at_least_fp32(t) for t in (q, k, v))
        L = q.shape[2]
        places = torch.arange(L, device=q.device)
        causal = places[:, None] >= places
        allowed = causal if present is None else causal & present[:, None, None]
        scores = torch.einsum("bhmd,bhnd->bhmn", q, k) * self.scaling
        hidden = torch.finfo(scores.dtype).min
        true = scores.masked_fill(~allowed, hidden).softmax(-1) * allowed
        near = allowed & (places >= self._window_start(places)[:, None])
        features = torch.einsum("bhmf,bhnf->bhmn", self.feature_map_q(q), self.feature_map_k(k))
        if self.window_factors is None:
            weights = features * allowed
        else:
            softmax, _ = self._softmax_part(scores, near)
            weights = softmax + features * (allowed & ~near)
        pred = weights / (weights.sum(-1, keepdim=True) + EPS)
        return Compared(scores, true, pred, true @ v, pred @ v)

    def _window_start(self, places: Tensor) -> Tensor:
        """First token of the window of each; with no window, the token after the last."""
        w = self.window
        if not w:
            return places.new_full(places.shape, len(places) + 1)
        return (places // w - 1) * w if self.terraced else places - w + 1

    def _softmax_part(self, scores: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the window and their sum, before the common normalisation."""
        assert self.window_factors is not None
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~near, hidden)
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * near
        weights = at_least_fp32(self.window_factors).sigmoid() * weights
        return weights, weights.sum(-1, keepdim=True)

    def _linear(
        self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, state: LinearState | None
    ) -> Tensor:
        fq, fk = self.feature_map_q(q), _only(self.feature_map_k(k), present)
        y, last = linear_attention(
            *(t.transpose(1, 2) for t in (fq, fk, at_least_fp32(v))), normalize=True, eps=EPS,
            initial_state=None if state is None else state.state, return_final_state=True,
        )  # fmt: skip
        if state is not None:
            state.state = last
            state.seen += q.shape[2]
        return y.transpose(1, 2)

    def _windowed(
        self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, state: LinearState | None
    ) -> Tensor:
        """Blocks of w tokens: each reads itself and the block before it key by key, and what came
        before these from the sum of their features."""
        w, new = self.window, q.shape[2]
        if present is None:
            present = torch.ones(len(q), new, dtype=torch.bool, device=q.device)
        sums = None
        if state is not None and state.seen:
            assert state.keys is not None and state.present is not None
            k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
            present = torch.cat([state.present, present], 1)
            sums = state.state
        old = k.shape[2] - new  # tokens of the blocks that were kept
        first = old // w  # block of the first new token
        fk = _only(self.feature_map_k(k), present)
        counted = torch.cat([at_least_fp32(v), v.new_ones(*v.shape[:-1], 1).float()], dim=-1)
        fill = -k.shape[2] % w
        blocks = [
            F.pad(t, (0, 0, 0, fill)).unflatten(2, (-1, w)) for t in (at_least_fp32(k), counted, fk)
        ]
        added = torch.einsum("bhnwf,bhnwp->bhnfp", blocks[2], blocks[1])
        before = F.pad(added.cumsum(2), (0, 0, 0, 0, 2, 0))[:, :, : added.shape[2]]
        before = before if sums is None else before + sums[:, :, None]  # of blocks up to i - 2
        pairs = [_with_previous(t)[:, :, first:] for t in blocks]  # [B, H, n, 2w, .]
        lead = old - first * w
        fq, qs = (
            F.pad(at_least_fp32(t), (0, 0, lead, fill)).unflatten(2, (-1, w))
            for t in (self.feature_map_q(q), q)
        )
        seen = _with_previous(F.pad(present, (0, fill)).unflatten(1, (-1, w))[:, None, ..., None])
        places = torch.arange(2 * w, device=q.device)
        queries = places[w:, None]
        start = torch.zeros_like(queries) if self.terraced else queries - w + 1
        causal = (places <= queries) & seen[:, :, first:, None, :, 0]  # [B, 1, n, w, 2w]
        near = causal & (places >= start)
        scores = torch.einsum("bhnqd,bhnkd->bhnqk", qs, pairs[0]) * self.scaling
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~near, hidden)
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * near
        weights = at_least_fp32(self.window_factors)[..., None].sigmoid() * weights  # type: ignore
        if not self.terraced:
            far = torch.einsum("bhnqf,bhnkf->bhnqk", fq, pairs[2])
            weights = weights + far * (causal & ~near)
        total = torch.einsum("bhnqk,bhnkp->bhnqp", weights, pairs[1])
        total = total + torch.einsum("bhnqf,bhnfp->bhnqp", fq, before[:, :, first:])
        y = total[..., :-1] / (total[..., -1:] + EPS)
        if state is not None:
            kept = max((k.shape[2] // w - 1) * w, 0)  # the block before the next token's, and on
            done = added[:, :, : kept // w].sum(2)
            state.state = done if sums is None else sums + done
            state.keys, state.values = k[:, :, kept:], v[:, :, kept:]
            state.present = present[:, kept:]
            state.seen += new
        return y.flatten(2, 3)[:, :, lead : lead + new]


def _with_previous(blocks: Tensor) -> Tensor:
    """[B, H, n, w, .] to [B, H, n, 2w, .]: before each block the one before it; zeros at first."""
    shifted = F.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    return torch.cat([shifted, blocks], dim=3)


def _only(features: Tensor, present: Tensor | None) -> Tensor:
    """Features of padding are zero: else it would gather weight."""
    return features if present is None else features * present[:, None, :, None]


def _present(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Which tokens are none of padding [B, L], from a mask of transformers."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise ZooError(
            "linear attention takes masks of attn_implementation 'eager' or 'sdpa', not "
            f"{type(mask).__name__}"
        )
    L = x.shape[1]
    last = mask[:, -L:] if mask.dim() == 2 else mask[:, 0, -1, -L:]
    return (last if last.dtype == torch.bool or mask.dim() == 2 else last == 0).bool().expand(
        len(x), L
    )  # fmt: skip


def _state_of(cache: Any, layer: int) -> LinearState:
    """The layer's state in a cache, which makes room for keys as long as it is not told better."""
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    found = cache.layers[layer]
    if isinstance(found, LinearState):
        return found
    if found.get_seq_length():
        raise ZooError("the cache holds keys of an attention layer, which was converted since")
    cache.layers[layer] = state = LinearState()
    return state
