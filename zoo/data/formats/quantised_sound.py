"""Sound as whole numbers, in linear or mu-law steps, as the code of state-spaces/s4 reads it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Quantization = Literal["mu-law", "linear"]
#: A clip whose loudest and softest samples differ by no more is silence.
_SILENCE = 1e-5
_EPSILON = 0.01


def zero_level(bits: int = 8) -> int:
    """The level of silence."""
    return 1 << (bits - 1)


def quantise(sound: Tensor, quantization: Quantization = "mu-law", bits: int = 8) -> Tensor:
    """Sound [S] -> levels [S] from 0 to 2^bits - 1; the clip is scaled to its own range first.

    Silence is :func:`zero_level` throughout.
    """
    low, high = sound.min(), sound.max()
    if high - low < _SILENCE:
        return torch.full(sound.shape, zero_level(bits))
    x = 2 * (sound - low) / (high - low + 1e-6) - 1
    if quantization == "mu-law":
        mu = torch.tensor(float((1 << bits) - 1))
        x = x.sign() * torch.log1p(mu * (x + 1e-8).abs()) / mu.log1p()
    return ((x + 1) / 2 * ((1 << bits) - _EPSILON) + _EPSILON / 2).long()


def dequantise(levels: Tensor, quantization: Quantization = "mu-law", bits: int = 8) -> Tensor:
    """Levels [...] -> sound in -1..1."""
    x = levels.float() / zero_level(bits) - 1
    if quantization == "linear":
        return x
    mu = (1 << bits) - 1
    return x.sign() * ((1 + mu) ** x.abs() - 1) / mu
