"""Where a command computes, and what a device takes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from zoo.errors import ZooError


def usable_device(name: str | None = None) -> torch.device:
    """The device of this name; without one the first GPU, or the CPU where there is none.

    Raises:
        ZooError: PyTorch cannot use it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ZooError(f"--device {name} cannot be used: {reason}") from None


def without_autocast(t: Tensor) -> AbstractContextManager[object]:
    """No autocast where ``t`` is. On ``meta`` PyTorch has none, and refuses to be asked."""
    return nullcontext() if t.is_meta else torch.autocast(t.device.type, enabled=False)
