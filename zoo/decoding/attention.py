"""``tree_attention`` as an attention implementation of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from zoo.errors import ZooError
from zoo.ops.tree_attention import tree_attention, tree_mask

#: Name of the implementation: ``model.set_attn_implementation(NAME)``.
NAME = "zoo_tree"


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
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Attention:
    """How one model is told which keys the nodes of a tree see.

    By :func:`tree_attention_forward` where the model can exchange its attention, otherwise by a
    dense mask of four dimensions.
    """

    def __init__(self, model: nn.Module) -> None:
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = list(configs.values())
        config = model.config
        current = config._attn_implementation
        self._swap = getattr(model, "_supports_attention_backend", False) and current in (
            "sdpa",
            "flash_attention_2",
            "flash_attention_3",
            NAME,
        )
        if not self._swap and current not in ("sdpa", "eager"):
            raise ZooError(
                f"{type(model).__name__} runs with attn_implementation='{current}', which takes no "
                "tree: load it with attn_implementation='sdpa'"
            )
        self._additive = current == "eager"
        windows = {
            getattr(m, "sliding_window", None) for m in model.modules() if hasattr(m, "q_proj")
        }
        self._window = getattr(config, "sliding_window", None)
        self._mixed = len(windows) > 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Exchange the model's attention for the time of a call."""
        if not self._swap:
            yield
            return
        before = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = NAME
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name

    def arguments(self, tree: OpenTree, slots: int, dtype: Any) -> dict[str, Any]:
        """Keyword arguments of the model's call; ``slots`` counts the tree's own too."""
        if self._swap:
            # anything of four dimensions goes through to the layers as it is
            return {"attention_mask": tree.anc_bits.new_ones(1, 1, 1, 1), "open_tree": tree}
        full = self._dense(tree, slots, 0, dtype)
        if not self._window:
            return {"attention_mask": full}
        near = self._dense(tree, slots, self._window, dtype)
        if self._mixed:
            return {"attention_mask": {"full_attention": full, "sliding_attention": near}}
        return {"attention_mask": near}

    def _dense(self, tree: OpenTree, slots: int, window: int, dtype: Any) -> Tensor:
        allowed = tree_mask(tree.kv_len, tree.anc_bits, tree.start, slots, window)[:, None]
        if not self._additive:
            return allowed
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, lowest)
