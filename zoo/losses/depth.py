"""Losses of depth maps."""

from __future__ import annotations

from torch import Tensor


def log_depth_loss(depth: Tensor, target: Tensor) -> Tensor:
    """Mean |u| + 0.5 (mean u² - 0.5 (mean u)²), u the difference of logarithms.

    The second part is Eigen et al.'s (2014) scale-invariant error, of each map by itself.

    Args:
        depth: [..., H, W], above 0.
        target: the same shape; 0 where the depth is unknown, which counts nowhere.

    Returns:
        mean over the maps that have depth; 0 if none has.
    """
    valid = (target > 0).flatten(-2)
    u = depth.clamp(min=1e-6).log() - target.clamp(min=1e-6).log()
    u = u.flatten(-2) * valid
    count = valid.sum(-1)
    some = count.clamp(min=1)
    mean, square, size = u.sum(-1) / some, u.square().sum(-1) / some, u.abs().sum(-1) / some
    loss = size + 0.5 * (square - 0.5 * mean.square())
    return loss.sum() / (count > 0).sum().clamp(min=1)
