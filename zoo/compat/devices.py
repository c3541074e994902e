"""Where papers' code names a CUDA device, and there is none: ``x.cuda()``, ``torch.cuda.device``.

VMamba guards even its PyTorch path by ``with torch.cuda.device(x.device)``, which refuses a CPU;
MambaCD's decoder makes its tensors by ``torch.empty(...).cuda()``. Both would end in an error.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

log = logging.getLogger("zoo")

_originals: list[tuple[Any, str, Any]] = []


def allow_cpu(*, on: bool) -> None:
    """Let CPU tensors through such places, or let PyTorch refuse them again."""
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)
    if not on:
        return
    _replace(torch.cuda.device, "__init__", _guard(torch.cuda.device.__init__))
    if not torch.cuda.is_available():
        _replace(torch.Tensor, "cuda", _stay)


def _replace(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _guard(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, device: Any) -> None:
        if getattr(device, "type", device) == "cpu":
            self.idx = self.prev_idx = -1  # no device: entering and leaving change nothing
        else:
            original(self, device)

    return init


def _stay(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    _say_once()
    return self


@functools.cache
def _say_once() -> None:
    log.warning(
        "zoo.compat: there is no CUDA device; what asks for one by .cuda() stays on the CPU"
    )
