"""Calls of sequence models that fingerprints name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.models.ssm.lmuformer import LMUFormer
from zoo.models.ssm.s4 import S4Stack
from zoo.models.ssm.sashimi import SashimiLM


def streamed(model: LMUFormer, inputs: Tensor) -> Tensor:
    """Logits after each step [B, L, K] of a sequence that comes in pieces of 1, 1, 2 and the
    rest."""
    stream, pieces = model.stream(), inputs.split([1, 1, 2, inputs.shape[1] - 4], dim=1)
    return torch.cat([stream.feed(piece, last=i == 3) for i, piece in enumerate(pieces)], 1)


def stepped(model: SashimiLM, tokens: Tensor) -> Tensor:
    """Logits [B, L, V], one sample at a time."""
    state = model.begin(len(tokens))
    return torch.stack([model.step(token, state) for token in tokens.T], 1)


@torch.no_grad()
def in_parts(model: S4Stack, inputs_embeds: Tensor) -> dict[str, Any]:
    """Outputs of a sequence that is read in a part of five steps and then step by step, and the
    states behind it."""
    cache = model.allocate_cache(len(inputs_embeds))
    parts = inputs_embeds.split([5, *[1] * (inputs_embeds.shape[1] - 5)], dim=1)
    outputs = torch.cat([model(part, cache=cache) for part in parts], 1)
    return {"outputs": outputs, "states": [t for state in cache.layers for t in state.tensors()]}
