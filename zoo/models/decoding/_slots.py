"""Slots behind a text, each of which says what stands at a place that is not written yet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.language._protocol import text_config


class Ahead(NamedTuple):
    """What a language model says along texts, and what slots behind cuts say of later tokens.

    Attributes:
        logits: ``[B, T, V]``, of the token that follows each.
        slots: ``[B, C, m, V]``; slot k (from 0) of a cut after token p is about token p + 2 + k.
    """

    logits: Tensor
    slots: Tensor


def added_mask(allowed: Tensor, target: nn.Module) -> Tensor:
    """A mask of booleans as one that is added to the scores of a language model."""
    dtype = target.get_input_embeddings().weight.dtype
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(dtype).min)


def by_layer(
    target: nn.Module, masks: Tensor, positions: Tensor, keys: Tensor
) -> Tensor | dict[str, Tensor]:
    """Masks ``[B, n, S]`` as a language model takes them, by kinds of layers if it has several.

    Args:
        positions: int64 ``[B, n]`` of the tokens, and ``keys`` ``[B, S]`` of what they may see.
    """
    config = text_config(target)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    kinds = kinds or {"sliding_attention" if window else "full_attention"}
    made = {}
    for kind in kinds:
        near = masks
        if kind == "sliding_attention":
            inside = positions[..., None] - keys[:, None] < window
            near = torch.minimum(masks, added_mask(inside, target))
        made[kind] = near[:, None]
    return made if len(made) > 1 else made.popitem()[1]
