"""Calls of language models that fingerprints name."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def stepwise(model: torch.nn.Module, input_ids: torch.Tensor, **first: Any) -> dict[str, Any]:
    """Logits of a prompt of three tokens, a part of two, and single tokens behind; last states."""
    out = model(input_ids[:, :3], use_cache=True, **first)
    logits, cache = [out.logits], out.cache
    for part in input_ids[:, 3:].split([2, *[1] * (input_ids.shape[1] - 5)], dim=1):
        logits.append(model(part, cache=cache, use_cache=True).logits)
    states = [tensor for state in cache.layers for tensor in state.tensors()]
    return {"logits": torch.cat(logits, dim=1), "states": states}


def documents() -> torch.Tensor:
    """Numbers of the documents that two blocks of nine tokens hold."""
    return torch.tensor(
        [[0, 0, 0, 1, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 2, 2, 2, 2]], dtype=torch.int32
    )
