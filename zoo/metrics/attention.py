"""What the weights of an attention are like."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_entropy(weights: Tensor) -> Tensor:
    """Entropy of each query's weights in nats, ``[..., L, L]`` to ``[..., L]``; 0·log 0 is 0."""
    return torch.special.entr(weights).sum(-1)


def attention_kl(true: Tensor, pred: Tensor, eps: float = 1e-12) -> Tensor:
    """KL divergence of weights from the true ones, ``[..., L, L]`` to ``[..., L]`` nats.

    Args:
        true, pred: rows of sum 1.
        eps: the least predicted weight.
    """
    return -attention_entropy(true) - (true * pred.clamp_min(eps).log()).sum(-1)


def monotonicity(scores: Tensor, weights: Tensor) -> Tensor:
    """How far weights grow with q·k: Spearman's correlation over the keys that the last query sees.

    Args:
        scores: q·k ``[..., L, L]``.
        weights: of the same shape.

    Returns:
        ``[...]``, 1 for softmax.
    """
    ranks = [t[..., -1, :].argsort(-1).argsort(-1).double() for t in (scores, weights)]
    a, b = (r - r.mean(-1, keepdim=True) for r in ranks)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
