"""Attention of SeqBoat's working memory: in a window, over tokens with positions of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.ema import truncated_

#: Score of a pair that is not looked at, which has no weight beside any other.
_MASKED = -5e4


class RelativeBias(nn.Module):
    """A weight for each distance, the last one for all beyond.

    Args:
        max_positions: distances are below this.
    """

    def __init__(self, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * max_positions - 1))
        truncated_(self.rel_pos_bias, 0.02)

    def forward(self, distance: Tensor) -> Tensor:
        """Whole numbers, a key's place less a query's, to weights of that shape."""
        far = self.max_positions - 1
        return self.rel_pos_bias[distance.clamp(-far, far) + far]


def attention_weights(scores: Tensor, allowed: Tensor, activation: str) -> Tensor:
    """What the values of keys count, ``[..., queries, keys]``.

    Args:
        scores: with their bias.
        allowed: which keys a query sees.
        activation: "softmax", or "relu2", the square of what is positive.
    """
    if activation == "relu2":
        return F.relu(scores).square() * allowed
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.masked_fill(~allowed, _MASKED).softmax(-1, dtype=exact).to(scores.dtype)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    window: int,
    causal: bool,
    activation: str = "softmax",
    bias: RelativeBias | None = None,
    positions: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of n tokens over those at most ``window`` before, and if not causal after them.

    The cost is linear in n: blocks of ``window`` queries see two or three blocks of keys.

    Args:
        q, k: ``[B, n, Z]``.
        v: ``[B, n, H]``.
        valid: bool ``[B, n]``, which keys are seen at all.
        window: how many tokens away a key may be; those of the memory count.
        causal: no token sees a later one.
        activation: see :func:`attention_weights`.
        bias: of the distances.
        positions: ``[B, n]``, between which the bias takes the distance; None: the places in the
            memory, less a window, as the authors' table of local distances has them.
        dropout: of the weights.

    Returns:
        ``[B, n, H]``; of a query that sees nothing, finite and without a meaning.
    """
    n = q.shape[1]
    alone = n <= window  # one block sees all there is
    size = n if alone else window
    sides = (0, 0) if alone else (1, 0 if causal else 1)
    missing = -n % size
    q, k, v = (F.pad(t, (0, 0, 0, missing)) for t in (q, k, v))
    blocks = q.unflatten(1, (-1, size))  # [B, m, w, Z]
    keys, values = (_around(t, size, *sides) for t in (k, v))  # [B, m, s, .], s of w, 2 w or 3 w
    seen = _around(F.pad(valid, (0, missing))[..., None], size, *sides)[..., 0]
    scores = blocks @ keys.transpose(-1, -2)  # [B, m, w, s]
    step = torch.arange(keys.shape[2], device=q.device)
    distance = step - sides[0] * size - step[:size, None]
    if bias is not None and positions is None:
        scores = scores + bias(distance + window)
    elif bias is not None and positions is not None:
        places = F.pad(positions, (0, missing))[..., None]
        theirs = _around(places, size, *sides)[..., 0]
        scores = scores + bias(theirs[:, :, None] - places.unflatten(1, (-1, size)))
    allowed = (distance >= -window) & (distance <= (0 if causal else window)) & seen[:, :, None]
    weights = F.dropout(attention_weights(scores, allowed, activation), dropout)
    return (weights @ values).flatten(1, 2)[:, :n]


def local_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    window: int,
    causal: bool,
    activation: str = "softmax",
    bias: RelativeBias | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """:func:`local_attention` over all pairs of tokens, to be read."""
    place = torch.arange(q.shape[1], device=q.device)
    distance = place - place[:, None]
    scores = q @ k.transpose(-1, -2)
    if bias is not None and positions is None:
        scores = scores + bias(distance + window)
    elif bias is not None and positions is not None:
        scores = scores + bias(positions[:, None] - positions[..., None])
    near = (distance >= -window) & (distance <= (0 if causal else window))
    return attention_weights(scores, near & valid[:, None], activation) @ v


def _around(x: Tensor, size: int, before: int, after: int) -> Tensor:
    """``[B, m w, C]`` to ``[B, m, s, C]``: each block of w with those around it."""
    blocks = x.unflatten(1, (-1, size))
    m = blocks.shape[1]
    padded = F.pad(blocks, (0, 0, 0, 0, before, after))
    return torch.cat([padded[:, i : i + m] for i in range(1 + before + after)], dim=2)
