"""How the cost of decoding grows with the context: a student against its teacher."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.models.multimodal._mmmamba_cost import full_size_bounds
from zoo.plots.lengths import cost_by_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Lengths of the bound by count; the last one is that of the paper.
BOUND_LENGTHS = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 103_000]
#: Speed-up and memory saved that the paper measured there.
PUBLISHED = {"linear": (20.6, 0.758), "hybrid": (13.5, 0.602)}
PART = 256  # tokens that are read at once


@dataclass
class LengthTest:
    """Decode behind contexts of several lengths.

    Args:
        lengths: of the contexts, ascending.
        steps: tokens that are timed at each, the fastest counts.
        batch_size: sequences at once.
    """

    lengths: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192, 32768])
    steps: int = 8
    batch_size: int = 1

    def measure(self, models: dict[str, nn.Module]) -> tuple[dict[str, float], Figure]:
        """Scores and a picture.

        Args:
            models: "teacher", "student" and more, in eval mode.

        Returns:
            At the longest context ``cache_ratio`` and ``time_ratio``, teacher to student, and the
            growth of both caches from the shortest, ``teacher_growth`` and ``student_growth``.
        """
        costs = {name: self._costs(model) for name, model in models.items()}
        (teacher_ms, teacher_mib), (student_ms, student_mib) = costs["teacher"], costs["student"]
        scores = {
            "time_ratio": teacher_ms[-1] / student_ms[-1],
            "cache_ratio": teacher_mib[-1] / student_mib[-1],
            "teacher_growth": teacher_mib[-1] / teacher_mib[0],
            "student_growth": student_mib[-1] / student_mib[0],
        }
        bounds = full_size_bounds(BOUND_LENGTHS)
        copying = {f"{name}, teacher copies": b.copying_speedup for name, b in bounds.items()}
        figure = cost_by_length(
            self.lengths,
            {name: cost[0] for name, cost in costs.items()},
            {name: cost[1] for name, cost in costs.items()},
            BOUND_LENGTHS,
            {name: b.speedup for name, b in bounds.items()} | copying,
            {name: b.memory_saved for name, b in bounds.items()},
            PUBLISHED,
        )
        return scores, figure

    @torch.inference_mode()
    def _costs(self, model: nn.Module) -> tuple[list[float], list[float]]:
        """Milliseconds of a token, and MiB of the cache, at each length."""
        device = next(model.parameters()).device
        vocabulary = model.config.vocab_size  # type: ignore[union-attr]
        generator = torch.Generator().manual_seed(0)
        cache, read, milliseconds, mebibytes = None, 0, [], []

        def tokens(count: int) -> Tensor:
            shape = (self.batch_size, count)
            return torch.randint(vocabulary, shape, generator=generator).to(device)

        for length in self.lengths:
            while read < length:
                count = min(PART, length - read)
                cache = _read(model, tokens(count), cache)
                read += count
            times = []
            for _ in range(self.steps):
                token = tokens(1)
                _wait_for(device)
                began = time.perf_counter()
                cache = _read(model, token, cache)
                _wait_for(device)
                times.append(time.perf_counter() - began)
            read += self.steps
            milliseconds.append(1000 * min(times))
            mebibytes.append(_nbytes(cache) / 2**20)
        return milliseconds, mebibytes


def _read(model: nn.Module, tokens: Tensor, cache: Any) -> Any:
    """Let a model read on; its cache after that. Ours call it ``cache``, attention models
    otherwise."""
    known = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    out = model(input_ids=tokens, use_cache=True, **{name: cache})
    return getattr(out, name)


def _wait_for(device: torch.device) -> None:
    """A GPU's work is only begun when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _nbytes(cache: Any) -> int:
    if hasattr(cache, "nbytes"):
        return cache.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
