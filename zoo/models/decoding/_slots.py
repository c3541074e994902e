"""Slots behind a text, each of which says what stands at a place that is not written yet."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from zoo.models.language._protocol import text_config
from zoo.models.language._split_decoder import cache_name


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


def read_behind(
    target: nn.Module, input_ids: Tensor, cuts: Tensor, ids: Tensor, slots: Tensor, sees: Tensor
) -> tuple[Any, Any]:
    """Read texts, then, over their keys, the same few tokens behind each of their cuts.

    The text has gradients if the target's weights want them; the slots have in any case.

    Args:
        target: the language model.
        input_ids: int64 ``[B, T]``, padded on the right if at all.
        cuts: int64 ``[B, C]``, indices of tokens.
        ids: int64 ``[n]``, what stands behind a cut; nothing else sees it.
        slots: int64 ``[n]``, how many places behind the first one each stands.
        sees: bool ``[n, n]``, which see which, beside the text up to the cut.

    Returns:
        The target's outputs of the texts, and of the slots ``[B, C n, ...]`` with all states.
    """
    batch, length = input_ids.shape
    cache = {cache_name(target.forward): DynamicCache()}
    text = torch.arange(length, device=input_ids.device).expand(batch, -1)
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in target.parameters())
    with torch.set_grad_enabled(learns):
        masks = added_mask(text[:, None] <= text[..., None], target)
        read = target(
            input_ids=input_ids,
            position_ids=text,
            attention_mask=by_layer(target, masks, text, text),
            use_cache=True,
            **cache,
        )
    positions = (cuts[..., None] + 1 + slots).flatten(1)  # [B, C n]
    sees_text = (text[:, None] <= cuts[..., None]).repeat_interleave(len(slots), 1)
    own = torch.block_diag(*[sees.to(ids.device)] * cuts.shape[1]).bool()
    masks = added_mask(torch.cat([sees_text, own.expand(batch, -1, -1)], dim=-1), target)
    out = target(
        input_ids=ids.repeat(batch, cuts.shape[1]),
        position_ids=positions,
        attention_mask=by_layer(target, masks, positions, torch.cat([text, positions], dim=1)),
        use_cache=True,
        output_hidden_states=True,
        **cache,
    )
    return read, out
