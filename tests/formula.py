"""Values by a formula, a hash of name and place: no generator, so the same on every machine."""

from __future__ import annotations

import fnmatch
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


class Refusal(Exception):
    """A case that would not notice a fault, and why."""


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Float64 in [-1, 1) from a hash of the name and the place of the element."""
    return torch.from_numpy(bits(name, math.prod(shape)) * 2.0**-52 - 1.0).reshape(shape)


def bits(name: str, count: int) -> np.ndarray:
    """53 bits an element, as float64: splitmix64 of the place, its stream named by a crc32."""
    place, stream = np.arange(count, dtype=np.uint64), np.uint64(zlib.crc32(name.encode()))
    with np.errstate(over="ignore"):
        x = (place + (stream << np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)


def fill(model: nn.Module, values: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Give every parameter and running statistic its value by formula.

    Matrices and convolutions keep the variance of their input, norms are off identity, no two rows
    are alike. ``values`` gives (offset, spread) for names that match a pattern, and is the only way
    to fill buffers other than running statistics: those hold indices and tables.
    """
    owners = {id(p): m for m in model.modules() for p in m._parameters.values() if p is not None}
    values = dict(values or {})
    unmatched = set(values)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            pattern = next((p for p in values if fnmatch.fnmatchcase(name, p)), None)
            unmatched.discard(pattern)
            if pattern is not None:
                offset, spread = values[pattern]
            elif id(tensor) in owners:
                offset, spread = _range(name, tensor, owners[id(tensor)])
            elif name.rpartition(".")[2] == "running_mean":
                offset, spread = 0.0, 0.3
            elif name.rpartition(".")[2] == "running_var":
                offset, spread = 1.0, 0.5
            else:
                continue
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            if real.is_floating_point():
                real.copy_(offset + spread * uniform(name, tuple(real.shape)))
    if unmatched:
        raise Refusal(f"no parameter or buffer is called {', '.join(sorted(unmatched))}")


def _range(name: str, tensor: Tensor, owner: nn.Module) -> tuple[float, float]:
    """Offset and spread of a parameter."""
    if tensor.dim() == 0:
        return 0.5, 0.3
    if tensor.dim() == 1:
        is_scale = name.rpartition(".")[2] == "weight" or isinstance(owner, nn.PReLU)
        return (1.0, 0.3) if is_scale else (0.0, 0.3)
    if isinstance(owner, NORMS) and name.endswith("weight"):
        return 1.0, 0.3
    if isinstance(owner, nn.Embedding):
        return 0.0, 1.0
    convolves = isinstance(owner, nn.modules.conv._ConvNd) or tensor.dim() >= 4
    fan_in = math.prod(tensor.shape[1:]) if convolves else tensor.shape[-1]
    return 0.0, math.sqrt(3 / fan_in)
