"""Kangaroo's adapter: one attention layer that turns shallow states into draft states.

Paper: Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting (2024, arXiv
2404.18911). Keys are those of the authors' ``pytorch_model.bin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from zoo.models.language.layers import cache_name
from zoo.models.registry import register_model


class _AttentionOnlyLayer(nn.Module):
    """``x + Attention(Norm(x))``, and no feed-forward part."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx=0)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        return hidden + self.self_attn(self.input_layernorm(hidden), **arguments)[0]


class KangarooAdapter(nn.Module):
    """Attention and a norm over the states of the target's first layers (section 3.1).

    The output goes into the target's own ``lm_head``. It is called like a model of transformers
    with ``inputs_embeds``, so that it keeps its keys in the same cache objects.

    Args:
        hidden_size, num_attention_heads, num_key_value_heads, rms_norm_eps,
        max_position_embeddings,
            rope_parameters: of the target.
    """

    _supports_attention_backend = True

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        rms_norm_eps: float = 1e-6,
        max_position_embeddings: int = 2048,
        rope_parameters: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        rope = {"rope_parameters": dict(rope_parameters)} if rope_parameters else {}
        self.config = LlamaConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads or num_attention_heads,
            rms_norm_eps=rms_norm_eps,
            max_position_embeddings=max_position_embeddings,
            num_hidden_layers=1,
            attn_implementation="sdpa",
            **rope,
        )
        self.layers = nn.ModuleList([_AttentionOnlyLayer(self.config)])
        self.norm = LlamaRMSNorm(hidden_size, eps=rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(self.config)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any], target: Any) -> KangarooAdapter:
        """Build from a ``config.json``, ours or the authors', for a target's configuration."""
        names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
        names += ("max_position_embeddings", "rope_parameters")
        return cls(**{name: settings.get(name, getattr(target, name, None)) for name in names})

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States ``[B, n, d]`` of the exit layer -> ``last_hidden_state`` ``[B, n, d]``."""
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{cache_name(create_causal_mask): cache},
        )
        hidden = self.layers[0](
            inputs_embeds,
            position_embeddings=self.rotary_emb(inputs_embeds, position_ids=position_ids),
            attention_mask=mask,
            **{cache_name(self.layers[0].self_attn.forward): cache},
            **kwargs,
        )
        return BaseModelOutputWithPast(self.norm(hidden), cache)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours: rotary buffers and the target's head are left out."""
        return {
            key: t
            for key, t in state_dict.items()
            if "rotary_emb" not in key and not key.startswith(("lm_head.", "embed_tokens."))
        }


@register_model()
def kangaroo_vicuna_7b(**overrides: Any) -> KangarooAdapter:
    """Adapter after layer 2 of Vicuna-7B v1.3."""
    return KangarooAdapter(**({"hidden_size": 4096, "num_attention_heads": 32} | overrides))


@register_model()
def kangaroo_vicuna_13b(**overrides: Any) -> KangarooAdapter:
    """Adapter after layer 3 of Vicuna-13B v1.3."""
    return KangarooAdapter(**({"hidden_size": 5120, "num_attention_heads": 40} | overrides))
