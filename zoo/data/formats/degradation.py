"""How pictures lose their detail: plain bicubic, or Real-ESRGAN's chain of two orders.

One draw of blur, noise and compression makes the pictures of all scales, so that they differ in
size alone.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from zoo.data.base import seeded


def bicubic(image: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
    """Picture [3, H, W] in 0..1 -> pictures [3, H/s, W/s] for each scale s, antialiased."""
    return {
        scale: resize(
            image,
            [side // scale for side in image.shape[-2:]],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        ).clamp(0, 1)
        for scale in scales
    }


def real_esrgan(image: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
    """Real-ESRGAN's degradation (Wang et al. 2021) with its published probabilities.

    Blur, resizing, noise and JPEG, all twice, the second time milder; a sinc filter at the end, for
    ringing. The first round is common to all scales, the second uses the same draw for each.

    Args:
        image: [3, H, W] in 0..1; H and W multiples of the scales.
        scales: of the wanted pictures.
    """
    size = image.shape[-2:]
    x = _blur(image, _kernel(sinc=0.1, sigma=(0.2, 3.0)))
    x = _resize_at_random(x, size, chances=(0.2, 0.7, 0.1), factors=(0.15, 1.5))
    x = _noise(x, gauss=(1, 30), poisson=(0.05, 3.0))
    x = _jpeg(x, random.uniform(30, 95))
    draw = random.getrandbits(32)
    results = {}
    for scale in scales:
        with seeded(draw):
            results[scale] = _second_round(x, [side // scale for side in size])
    return results


def _second_round(x: Tensor, size: Sequence[int]) -> Tensor:
    """From any size to ``size``."""
    if random.random() < 0.8:
        x = _blur(x, _kernel(sinc=0.1, sigma=(0.2, 1.5)))
    x = _resize_at_random(x, size, chances=(0.3, 0.4, 0.3), factors=(0.3, 1.2))
    quality = random.uniform(30, 95)
    ringing = _sinc_kernel(random.uniform(math.pi / 3, math.pi), _odd_size())
    filtered, filter_first = random.random() < 0.8, random.random() < 0.5
    mode = random.choice(_MODES)
    x = _noise(x, gauss=(1, 25), poisson=(0.05, 2.5))
    x = _resize(x, size, mode)
    if filtered and filter_first:
        x = _blur(x, ringing)
    x = _jpeg(x, quality)
    if filtered and not filter_first:
        x = _blur(x, ringing)
    return (x.clamp(0, 1) * 255).round() / 255


_MODES = ("area", "bilinear", "bicubic")


def _resize(image: Tensor, size: Sequence[float], mode: str) -> Tensor:
    size = [max(1, round(side)) for side in size]
    align = {} if mode == "area" else {"align_corners": False}
    return interpolate(image[None], size=size, mode=mode, **align)[0].clamp(0, 1)


def _resize_at_random(
    image: Tensor,
    size: Sequence[float],
    chances: tuple[float, float, float],
    factors: tuple[float, float],
) -> Tensor:
    """Towards ``size``, up, down or exactly."""
    way = random.choices(("up", "down", "keep"), chances)[0]
    factor = {
        "up": lambda: random.uniform(1, factors[1]),
        "down": lambda: random.uniform(factors[0], 1),
        "keep": lambda: 1.0,
    }[way]()
    return _resize(image, [side * factor for side in size], random.choice(_MODES))


def _odd_size() -> int:
    return random.choice(range(7, 22, 2))


def _kernel(sinc: float, sigma: tuple[float, float]) -> Tensor:
    """A random kernel [k, k]: sinc, or (generalised, plateau) Gaussian, round or oblong."""
    size = _odd_size()
    if random.random() < sinc:
        cutoff = random.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi)
        return _sinc_kernel(cutoff, size)
    kind = random.choices(("gauss", "generalised", "plateau"), (0.7, 0.15, 0.15))[0]
    oblong = random.random() < (0.45 / 0.7 if kind == "gauss" else 0.2)
    wide = random.uniform(*sigma)
    narrow, turn = (
        (random.uniform(*sigma), random.uniform(-math.pi, math.pi)) if oblong else (wide, 0)
    )
    axis = torch.arange(size) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = (x * math.cos(turn) + y * math.sin(turn)) / wide
    across = (y * math.cos(turn) - x * math.sin(turn)) / narrow
    square = along.square() + across.square()
    if kind == "gauss":
        kernel = torch.exp(-square / 2)
    elif kind == "generalised":
        kernel = torch.exp(-0.5 * square.pow(random.uniform(0.5, 4)))
    else:
        kernel = 1 / (1 + square.pow(random.uniform(1, 2)))
    return kernel / kernel.sum()


def _sinc_kernel(cutoff: float, size: int) -> Tensor:
    """The circular low-pass filter of a cutoff frequency in radians."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    safe = radius.clamp(min=1e-9)
    kernel = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def _blur(image: Tensor, kernel: Tensor) -> Tensor:
    border = kernel.shape[-1] // 2
    mode = "reflect" if border < min(image.shape[-2:]) else "replicate"
    padded = pad(image[:, None], (border,) * 4, mode=mode)
    return conv2d(padded, kernel[None, None])[:, 0].clamp(0, 1)


def _noise(image: Tensor, gauss: tuple[float, float], poisson: tuple[float, float]) -> Tensor:
    """Gaussian (deviation in 1/255) or Poisson noise, in 40 % of cases the same for all colours."""
    grey = random.random() < 0.4
    if random.random() < 0.5:
        shape = (1, *image.shape[1:]) if grey else image.shape
        noise = torch.randn(shape) * random.uniform(*gauss) / 255
    else:
        source = image.mean(0, keepdim=True) if grey else image
        # as many photons as the picture has different values, rounded up to a power of two
        photons = 2 ** math.ceil(math.log2(max(len((source * 255).round().unique()), 2)))
        noise = (torch.poisson(source * photons) / photons - source) * random.uniform(*poisson)
    return (image + noise).clamp(0, 1)


def _jpeg(image: Tensor, quality: float) -> Tensor:
    pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).movedim(-1, 0) / 255
