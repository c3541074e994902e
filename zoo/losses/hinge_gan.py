"""Hinge losses of a discriminator, weighted against a reconstruction (VQGAN, Esser et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Real scores above 1 and fake ones below -1 cost nothing; scores of any shape."""
    return ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """What makes the adversarial gradient as large as the reconstruction's, at most 10,000.

    Args:
        reconstruction, adversarial: losses whose graphs are still there.
        last: weight of the last layer, where gradients are measured.
    """
    sizes = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]
    return (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e4).detach()
