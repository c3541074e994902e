"""Kangaroo's adapter: one attention layer that turns shallow states into draft states.

Paper: Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting (2024, arXiv
2404.18911). Keys are those of the authors' ``pytorch_model.bin``. Outputs, gradients and decoding
step by step agree with the authors' code (Equationliu/Kangaroo, commit 4f0949d) on random weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from zoo.models.decoding._one_layer import OneLayerModel, layer_settings
from zoo.models.decoding._state_dicts import without_copies
from zoo.models.language._split_decoder import cache_name
from zoo.models.registry import register_model


class _AttentionOnlyLayer(nn.Module):
    """``x + Attention(Norm(x))``, and no feed-forward part."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx=0)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._cache_name = cache_name(self.self_attn.forward)

    def forward(self, hidden: Tensor, cache: Cache | None, **arguments: Any) -> Tensor:
        arguments[self._cache_name] = cache
        return hidden + self.self_attn(self.input_layernorm(hidden), **arguments)[0]


class KangarooAdapter(OneLayerModel):
    """Attention and a norm over the states of the target's first layers (section 3.1).

    The output goes into the target's own ``lm_head``.

    Args:
        exit_layer: number of shallow layers; kept in ``config``, the adapter itself is the same.
        settings: of the layer, the target's; see :data:`zoo.models.decoding._one_layer.SETTINGS`.
    """

    def __init__(self, exit_layer: int = 2, **settings: Any) -> None:
        super().__init__(**settings)
        self.config.exit_layer = exit_layer
        self.layers = nn.ModuleList([_AttentionOnlyLayer(self.config)])
        self.norm = LlamaRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> KangarooAdapter:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        exit_layer = (settings or {}).get("exit_layer", 2)
        return cls(exit_layer, **layer_settings(target, settings))

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States ``[B, n, d]`` of the exit layer -> ``last_hidden_state`` ``[B, n, d]``."""
        position_ids = self.positions(inputs_embeds, position_ids)
        hidden = self.layers[0](
            inputs_embeds,
            cache,
            position_embeddings=self.rotary_emb(inputs_embeds, position_ids=position_ids),
            attention_mask=self.causal_mask(inputs_embeds, position_ids, attention_mask, cache),
            **kwargs,
        )
        return BaseModelOutputWithPast(self.norm(hidden), cache)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours: rotary buffers and the target's head are left out."""
        return without_copies(state_dict)


def _vicuna(overrides: dict[str, Any], **settings: Any) -> KangarooAdapter:
    common = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
    return KangarooAdapter(**(common | settings | overrides))


@register_model(parameters=67_117_056)
def kangaroo_vicuna_7b(**overrides: Any) -> KangarooAdapter:
    """Adapter after layer 2 of Vicuna-7B v1.3."""
    return _vicuna(overrides, hidden_size=4096, num_attention_heads=32)


@register_model(parameters=104_867_840)
def kangaroo_vicuna_13b(**overrides: Any) -> KangarooAdapter:
    """Adapter after layer 3 of Vicuna-13B v1.3."""
    return _vicuna(overrides, exit_layer=3, hidden_size=5120, num_attention_heads=40)
