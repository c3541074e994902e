"""What draft heads with an attention layer share: the target's settings, rotary positions, a mask.

They are called like models of transformers, so that they keep their keys in the same cache objects
and can read trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zoo.models.language._split_decoder import cache_name

#: What a layer of a head takes over from the target, as :class:`transformers.LlamaConfig` names it.
SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
)


def layer_settings(target: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Shape of a head's layer.

    Args:
        target: configuration of the target.
        given: settings that go before the target's, of a ``config.json``.
    """
    given = given or {}
    values = {name: given.get(name, getattr(target, name, None)) for name in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


class OneLayerModel(nn.Module):
    """Base of heads with one attention layer.

    Args:
        settings: of the layer; see :data:`SETTINGS`.
    """

    _supports_attention_backend = True

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=1, attn_implementation="sdpa", **settings)
        self.rotary_emb = LlamaRotaryEmbedding(self.config)

    def positions(self, states: Tensor, position_ids: Tensor | None) -> Tensor:
        """Positions ``[B, n]`` of states ``[B, n, d]``: those given, or 0 to n - 1."""
        if position_ids is not None:
            return position_ids
        return torch.arange(states.shape[1], device=states.device)[None]

    def causal_mask(
        self,
        states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Any:
        """The mask of a layer; one of four dimensions passes as it is."""
        return create_causal_mask(
            self.config,
            states,
            attention_mask,
            position_ids=position_ids,
            **{cache_name(create_causal_mask): cache},
        )
