"""Losses of the dense tasks as the multi-task benchmarks weigh them.

Each takes an output [B, C, H, W] and a target, and averages over the pixels that have a label; none
at all gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from zoo.losses.segmentation import IGNORE


def label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy; target [B, H, W] of classes."""
    count = (target != IGNORE).sum().clamp(min=1)
    return cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum") / count


def balanced_label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of two classes, each weighted by the batch's share of the other."""
    valid = target != IGNORE
    count = valid.sum().clamp(min=1)
    negative = (target.eq(0) & valid).sum() / count
    weight = torch.stack([1 - negative, negative]).to(logits.dtype)
    losses = cross_entropy(logits, target, weight, ignore_index=IGNORE, reduction="none")
    return losses.sum() / count


def edge_loss(logits: Tensor, target: Tensor, positive: float = 0.95) -> Tensor:
    """Binary cross-entropy with weights ``positive`` of edges and 1 - ``positive`` of the rest.

    Args:
        logits: [B, 1, H, W].
        target: [B, H, W], 0, 1 or 255.
        positive: weight of edges.
    """
    valid = target != IGNORE
    truth = target.where(valid, 0).to(logits.dtype)
    weight = torch.where(truth > 0.5, positive, 1 - positive) * valid
    losses = binary_cross_entropy_with_logits(logits[:, 0], truth, weight, reduction="sum")
    return losses / valid.sum().clamp(min=1)


def normals_loss(normals: Tensor, target: Tensor) -> Tensor:
    """Summed absolute difference of unit vectors; target [B, 3, H, W], 0 where unknown."""
    valid = target.ne(0).any(1)
    difference = (normalize(normals, dim=1) - target).abs().sum(1)
    return (difference * valid).sum() / valid.sum().clamp(min=1)


def depth_loss(depth: Tensor, target: Tensor) -> Tensor:
    """Absolute difference; target [B, H, W], 0 where unknown."""
    valid = target > 0
    return ((depth[:, 0] - target).abs() * valid).sum() / valid.sum().clamp(min=1)


def balance_loss(gates: Sequence[dict[str, Tensor]]) -> Tensor:
    """Squared variation (deviation over mean) of how much each expert is used (MLoRE).

    Args:
        gates: at each tap task -> weights [B, experts, ...].

    Returns:
        sum over taps; the mean is over samples and tasks.
    """
    total = next(iter(gates[0].values())).new_zeros(())
    for tap in gates:
        use = torch.cat(
            [
                weights.flatten(2).mean(2) if weights.ndim > 2 else weights
                for weights in tap.values()
            ]
        ).mean(0)
        total = total + (use.std() / use.mean()).square()
    return total
