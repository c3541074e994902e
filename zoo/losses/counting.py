"""Losses of density maps: squared error with an attention map, and the Bayesian point loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from zoo.devices import without_autocast


def density_loss(
    density: Tensor,
    target: Tensor,
    attention: Tensor | None,
    attention_target: Tensor,
    attention_weight: float = 0.1,
) -> Tensor:
    """Squared error and cross-entropy, summed over pixels, mean over the batch (SFANet).

    Args:
        density, target: [B, 1, H, W].
        attention: [B, 1, H, W] in 0..1, or None; ``attention_target``: 0 or 1.
        attention_weight: of the cross-entropy.
    """
    loss = (density - target).square().sum()
    if attention is not None:
        with without_autocast(attention):  # which refuses it on a GPU
            cross_entropy = binary_cross_entropy(
                attention.float(), attention_target.float(), reduction="sum"
            )
        loss = loss + attention_weight * cross_entropy
    return loss / len(density)


def bayesian_loss(
    density: Tensor,
    points: Sequence[Tensor],
    targets: Sequence[Tensor],
    short_sides: Tensor,
    stride: int = 2,
    sigma: float = 8.0,
    background_ratio: float = 1.0,
) -> Tensor:
    """Expected count of each annotated point against its target (Ma et al. 2019), mean over B.

    A pixel belongs to a point with a probability that falls with the squared distance; the
    background is one point more, as far off as the nearest point is short of the picture's side.

    Args:
        density: [B, 1, H, W].
        points: [N, 2] per picture, (x, y) in pixels of the image.
        targets: [N] per picture, visible share of each head; the background's is 0.
        short_sides: [B], shorter side of each whole picture in pixels.
        stride: image pixels to a pixel of the map.
        sigma: of the distance, in image pixels.
        background_ratio: times the short side.
    """
    height, width = density.shape[-2:]
    device = density.device
    y = torch.arange(height, device=device) * stride + stride / 2
    x = torch.arange(width, device=device) * stride + stride / 2
    total = density.new_zeros(())
    for one, where, target, side in zip(density[:, 0], points, targets, short_sides, strict=True):
        if len(where) == 0:
            total = total + one.sum().abs()
            continue
        squared = (y - where[:, 1, None]).square()[:, :, None]
        squared = (squared + (x - where[:, 0, None]).square()[:, None]).flatten(1)  # [N, H * W]
        nearest = squared.amin(0, keepdim=True)
        background = (background_ratio * side - nearest.sqrt()).square()
        share = (-torch.cat([squared, background]) / (2 * sigma**2)).softmax(0)
        counts = share @ one.flatten()  # [N + 1]
        wanted = torch.cat([target, target.new_zeros(1)])
        total = total + (wanted - counts).abs().sum()
    return total / len(density)
