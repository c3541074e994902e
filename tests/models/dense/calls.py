"""Inputs and calls of the dense models that fingerprints name."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from zoo.models.dense.yonos_sr import YONOSSR, HaarAutoencoder


def holes() -> Tensor:
    """Two masks [2, 1, 48, 64], 1 in a hole: a large one inside, and one at the border."""
    mask = torch.zeros(2, 1, 48, 64)
    mask[0, :, 8:34, 12:45] = 1
    mask[1, :, :20, 40:] = 1
    return mask


def large_hole() -> Tensor:
    """A mask [1, 1, 192, 192]."""
    mask = torch.zeros(1, 1, 192, 192)
    mask[..., 30:120, 60:150] = 1
    return mask


def haar(model: HaarAutoencoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Latents, and the picture from them."""
    latent = model.encoder(image)
    return latent, model.decoder(latent)


def coded(model: YONOSSR, image: Tensor) -> tuple[Tensor, Tensor]:
    """Latents, and the picture from them."""
    latent = model.encode(image)
    return latent, model.decode(latent)


class FormulaUNet(nn.Module):
    """Stands for diffusers' U-Net: a formula of all that it is given."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> SimpleNamespace:
        """[B, 2C, h, w], [B], [B, L, d] -> [B, C, h, w] as ``sample``."""
        noisy, condition = x.chunk(2, dim=1)
        told = (t.to(x) / 1000 + context.mean((1, 2)))[:, None, None, None]
        return SimpleNamespace(sample=(noisy * told).sin() + condition.flip(-1) * 0.7)


def _exact(model: YONOSSR) -> None:
    """A schedule in float64 from its definition: scaled linear, rescaled to end in pure noise."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    model.schedule.alphas_cumprod = ((signal - last) * first / (first - last)) ** 2
    model.schedule.final_alpha_cumprod = torch.ones((), dtype=torch.float64)


def velocity(model: YONOSSR, noisy: Tensor, condition: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity, and the clean latent that follows from it."""
    _exact(model)
    network = FormulaUNet()
    answer = model.velocity(noisy, condition, t, network)
    return answer, model.denoise(noisy, condition, t, network)


def sampled(model: YONOSSR, noisy: Tensor, condition: Tensor, steps: int) -> Tensor:
    """The latent after so many steps of DDIM."""
    _exact(model)
    model.unet = FormulaUNet()
    return model.sample(condition, noisy, steps)
