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

from zoo.errors import ZooError, suggest
from zoo.models.language._protocol import text_config
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
#: What else may be said of a layer.
FURTHER = (
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "initializer_range",
    "mlp_bias",
)


def layer_settings(target: nn.Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Shape of a head's layer.

    Args:
        target: the language model that the head stands beside.
        given: settings that go before the target's, of a ``config.json``.
    """
    given, config = given or {}, text_config(target)
    values = {name: given.get(name, getattr(config, name, None)) for name in SETTINGS}
    values["rope_parameters"] = _rotary(values["rope_parameters"])
    if values["num_attention_heads"] is None:  # a target without attention
        values["num_attention_heads"] = max(1, values["hidden_size"] // 64)
    return {name: value for name, value in values.items() if value is not None}


def _rotary(parameters: Any) -> dict[str, Any] | None:
    """Rotary settings that one layer of Llama can have."""
    if not parameters:
        return None
    parts = [value for value in parameters.values() if isinstance(value, dict)]
    if parts:  # one for each kind of layer
        parameters = parameters.get("full_attention") or parts[0]
    if parameters.get("rope_type", "default") in ("default", "dynamic", "linear", "llama3", "yarn"):
        return {k: v for k, v in parameters.items() if k != "partial_rotary_factor"}
    # factors for each dimension are the target's own
    return {"rope_type": "default", "rope_theta": parameters.get("rope_theta", 10000.0)}


def layer_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a layer, all of them known.

    Raises:
        ZooError: if there is another among them.
    """
    known = (*SETTINGS, *FURTHER)
    for name in settings:
        if name not in known:
            raise ZooError(f"{name} is no setting of a head's layer; {suggest(name, known)}")
    return dict(settings)


class OneLayerModel(nn.Module):
    """Base of heads with one attention layer.

    Args:
        settings: of the layer; see :data:`SETTINGS` and :data:`FURTHER`.

    Raises:
        ZooError: for a setting that a layer does not have.
    """

    _supports_attention_backend = True

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = LlamaConfig(
            num_hidden_layers=1, attn_implementation="sdpa", **layer_config(settings)
        )
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
