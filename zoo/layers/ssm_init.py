"""Initial values of the parameters of selective SSMs (Mamba, section 3.6 and its code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def dt_bias(
    *shape: int, dt_min: float = 1e-3, dt_max: float = 0.1, dt_init_floor: float = 1e-4
) -> Tensor:
    """Bias b with softplus(b) log-uniform in [dt_min, dt_max] and at least ``dt_init_floor``."""
    log_dt = torch.rand(shape) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
    dt = log_dt.exp().clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def dt_weight(*shape: int, dt_rank: int, dt_init: str = "random", dt_scale: float = 1.0) -> Tensor:
    """Weight of the step-size projection: uniform in ±dt_scale·dt_rank^-½, or constantly that."""
    bound = dt_scale * dt_rank**-0.5
    if dt_init == "constant":
        return torch.full(shape, bound)
    if dt_init == "random":
        return torch.empty(shape).uniform_(-bound, bound)
    raise ValueError(f"dt_init is 'random' or 'constant', not '{dt_init}'")


def s4d_real_log(channels: int, d_state: int) -> Tensor:
    """log(1 ... d_state) for every channel, [channels, d_state]: S4D-Real has A = -exp of it."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(channels, 1)


def say_range(mixer: nn.Module, negative: bool) -> None:
    """Note in a mixer, and in its state dict, that its eigenvalues may be negative: its weights
    have the shapes of one whose are not, and mean nothing to it."""
    if negative:
        mixer.eig_range = "pm1"  # type: ignore[assignment]
        mixer.register_buffer("negative_eigenvalues", torch.ones((), dtype=torch.uint8))
