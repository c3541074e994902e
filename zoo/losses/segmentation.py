"""Losses of label maps: soft Dice, Lovasz hinge and softmax, and the band around boundaries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, max_pool2d, one_hot

IGNORE = 255


def soft_dice_loss(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """One minus the Dice overlap of probabilities, mean over classes (TransUNet's form).

    Args:
        logits: [B, C, H, W].
        target: [B, H, W], classes; pixels of ``ignore_index`` count nowhere.
    """
    valid = target != ignore_index
    truth = one_hot(target.where(valid, 0), logits.shape[1]).movedim(-1, 1) * valid[:, None]
    chance = logits.softmax(1) * valid[:, None]
    overlap = (chance * truth).sum((0, 2, 3))
    size = chance.square().sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()


def lovasz_hinge(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Lovasz extension of the Jaccard loss over hinge errors (Berman et al. 2018), per image.

    Args:
        logits: [B, H, W] of the foreground.
        target: [B, H, W], 0 or 1.
    """
    losses = []
    for logit, label in zip(logits, target, strict=True):
        valid = label != ignore_index
        truth = label[valid].to(logit.dtype)
        errors, order = (1 - logit[valid] * (2 * truth - 1)).sort(descending=True)
        losses.append(errors.relu() @ _jaccard_steps(truth[order]))
    return torch.stack(losses).mean()


def lovasz_softmax(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Lovasz extension of the Jaccard loss over softmax errors (Berman et al. 2018), of the whole
    batch, mean over the classes that occur in it; 0 if no pixel is known.

    Args:
        logits: [B, C, H, W].
        target: [B, H, W], classes.
    """
    valid = target != ignore_index
    chances = logits.softmax(1).movedim(1, -1)[valid]  # [P, C]
    labels = target[valid]
    losses = []
    for label in labels.unique().tolist():
        truth = (labels == label).to(chances.dtype)
        errors, order = (truth - chances[:, label]).abs().sort(descending=True)
        losses.append(errors @ _jaccard_steps(truth[order]))
    return torch.stack(losses).mean() if losses else chances.sum()


def known_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Mean cross-entropy over the known pixels; 0 if there is none."""
    total = cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)


def _jaccard_steps(truth: Tensor) -> Tensor:
    """By how much each further error, the greatest first, raises the Jaccard loss; [P] to [P]."""
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def boundary_band(target: Tensor, width: int) -> Tensor:
    """Where a square of ``width`` pixels holds more than one class: dilation minus erosion.

    Args:
        target: [B, H, W], classes.
        width: odd.

    Returns:
        bool [B, H, W].
    """
    labels = target[:, None].float()
    high = max_pool2d(labels, width, 1, width // 2)
    low = -max_pool2d(-labels, width, 1, width // 2)
    return (high != low)[:, 0]


def frequency_weights(counts: Tensor) -> Tensor:
    """Class weights 1 / ln(1.10 + share of the class) (ENet); pixel counts [C] -> [C]."""
    return 1 / torch.log(1.10 + counts / counts.sum())
