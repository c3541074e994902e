"""``tree_attention`` as an attention implementation of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from zoo.errors import ZooError
from zoo.models.language._protocol import text_config
from zoo.ops.tree_attention import tree_attention, tree_mask

#: Name of the implementation: ``model.set_attn_implementation(NAME)``.
NAME = "zoo_tree"
#: Kinds of layers, as ``config.layer_types`` names them.
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class OpenTree(NamedTuple):
    """What the attention of the newest nodes needs to know; see :func:`zoo.ops.tree_attention`.

    A model whose attention implementation is ``"zoo_tree"`` takes it as the keyword argument
    ``open_tree``; without it the implementation is ordinary causal attention.
    """

    kv_len: Tensor
    anc_bits: Tensor
    start: Tensor


def tree_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    open_tree: OpenTree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the call convention of transformers; ``[B, N, H, D]``."""
    if open_tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ZooError(
            f"{type(module).__name__} caps its scores or has attention sinks, which tree attention "
            "does not know: load the model with attn_implementation='eager'"
        )
    width = value.shape[-1]
    if width != key.shape[-1]:  # keys are wider in latent attention
        value = pad(value, (0, key.shape[-1] - width))
    out = tree_attention(
        query,
        key,
        value,
        open_tree.kv_len,
        open_tree.anc_bits,
        tree_start=open_tree.start,
        scale=scaling,
        window=sliding_window or 0,
    )
    return out[..., :width].transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Attention:
    """How one model is told which keys the nodes of a tree see.

    By :func:`tree_attention_forward` where the model can exchange its attention, otherwise by a
    dense mask of four dimensions.

    Args:
        model: a causal LM of transformers.
        own: leave the model its own attention in any case.
    """

    def __init__(self, model: nn.Module, own: bool = False) -> None:
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = list(configs.values())
        config = text_config(model)
        current = model.config._attn_implementation
        kinds = set(getattr(config, "layer_types", None) or [])
        self.swaps = (
            not own
            and getattr(model, "_supports_attention_backend", False)
            and current != "eager"
            # the op's window is the same for all positions, a chunk's is not
            and CHUNKED not in kinds
        )
        # of the others, these two take a mask
        during = NAME if self.swaps else current if current in ("sdpa", "eager") else "sdpa"
        self._during = None if during == current else during
        self._additive = during == "eager"
        self._window = getattr(config, "sliding_window", None)
        self._chunk = getattr(config, "attention_chunk_size", None)
        windows = {
            getattr(m, "sliding_window", None) for m in model.modules() if hasattr(m, "q_proj")
        }
        if not kinds and len(windows) > 1:
            kinds = {FULL, SLIDING}
        #: Kinds of layers; models look their layers' masks up by these names.
        self._kinds = kinds or {SLIDING if self._window else FULL}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Exchange the model's attention for the time of a call."""
        if self._during is None:
            yield
            return
        before = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = self._during
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name

    def arguments(
        self, tree: OpenTree, positions: Tensor, slots: int, dtype: Any
    ) -> dict[str, Any]:
        """Keyword arguments of the model's call.

        Args:
            tree: the open tree.
            positions: int64 ``[B, N]``, of its newest nodes.
            slots: how many are in use, the tree's own counted.
            dtype: of masks that are added to the scores.
        """
        if self.swaps:
            # anything of four dimensions goes through to the layers as it is
            return {"attention_mask": tree.anc_bits.new_ones(1, 1, 1, 1), "open_tree": tree}
        masks = {}
        for kind in self._kinds:
            window: int | Tensor = 0
            if kind == SLIDING:
                window = self._window
            elif kind == CHUNKED:  # as far back as the node's place in its chunk
                window = positions[..., None] % self._chunk + 1  # [B, N, 1]
            masks[kind] = self._dense(tree, slots, window, dtype)
        return {"attention_mask": masks if len(masks) > 1 else masks.popitem()[1]}

    def _dense(self, tree: OpenTree, slots: int, window: int | Tensor, dtype: Any) -> Tensor:
        allowed = tree_mask(tree.kv_len, tree.anc_bits, tree.start, slots, window)[:, None]
        if not self._additive:
            return allowed
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, lowest)
