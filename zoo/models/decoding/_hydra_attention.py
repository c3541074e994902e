"""Hydra's single heads with attention, which go on from their own states: two ablations.

Paper: Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (2024, arXiv 2402.05109). One
head of one layer predicts every depth: it reads the embedding of the newest token and the state
before it, and its output stands for the target's state at that token. Keys are those of the
authors' ``hydra_lm_head.pt``; outputs and gradients agree with their code (zankner/Hydra, commit
3f39fbd) on random weights. No weights of these two are published.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)

from zoo.models.decoding._one_layer import OneLayerModel, layer_settings
from zoo.models.decoding._state_dicts import part_of, without_copies
from zoo.models.language._split_decoder import cache_name
from zoo.models.registry import register_model


class HydraAttentionHead(OneLayerModel):
    """What both have in common: reading states and embeddings, and the output of the target.

    Position t belongs to the state of token t and the embedding of token t + 1; the output goes
    into the target's own ``lm_head`` and predicts token t + 2.

    Args:
        hidden_state_offset: how many of the target's last layers the states come before.
        settings: of the layer, the target's; see :data:`zoo.models.decoding._one_layer.SETTINGS`.
    """

    arch: str

    def __init__(self, hidden_state_offset: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.config.arch, self.config.hidden_state_offset = self.arch, hidden_state_offset

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> HydraAttentionHead:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        offset = (settings or {}).get("hidden_state_offset", 0)
        return cls(offset, **layer_settings(target, settings))

    @property
    def hidden_state_offset(self) -> int:
        """How many of the target's last layers the states come before."""
        return self.config.hidden_state_offset

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours: the target's head and embedding are left out."""
        return without_copies(part_of(state_dict, "hydra_head."))


class HydraEagleHead(HydraAttentionHead):
    """``eagle-attn``: a linear map of embedding and state, then a layer of the target's kind.

    In the authors' code later nodes of a level also see earlier ones, which are not their
    ancestors; here a node sees its own path alone, as in training.
    """

    arch = "eagle-attn"

    def __init__(self, hidden_state_offset: int = 0, **settings: Any) -> None:
        super().__init__(hidden_state_offset, **settings)
        self.fc = nn.Linear(2 * self.config.hidden_size, self.config.hidden_size)
        self.attn = LlamaDecoderLayer(self.config, layer_idx=0)
        self._cache_name = cache_name(self.attn.forward)

    def forward(
        self,
        inputs_embeds: Tensor,
        states: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Embeddings and states ``[B, n, d]`` -> ``last_hidden_state`` ``[B, n, d]``."""
        position_ids = self.positions(states, position_ids)
        hidden = self.fc(torch.cat([inputs_embeds, states], dim=-1))
        hidden = self.attn(
            hidden,
            position_ids=position_ids,
            position_embeddings=self.rotary_emb(hidden, position_ids=position_ids),
            attention_mask=self.causal_mask(hidden, position_ids, attention_mask, cache),
            **{self._cache_name: cache},
            **kwargs,
        )
        return BaseModelOutputWithPast(hidden, cache)


class _CrossAttention(LlamaAttention):
    """Queries from embeddings, keys and values from states."""

    def forward(  # type: ignore[override]
        self,
        embeds: Tensor,
        states: Tensor,
        rotary: tuple[Tensor, Tensor],
        rotary_states: tuple[Tensor, Tensor],
        attention_mask: Any,
        cache: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        shape = (*embeds.shape[:-1], -1, self.head_dim)
        q = self.q_proj(embeds).view(shape).transpose(1, 2)  # [B, H, n, D]
        k = self.k_proj(states).view(shape).transpose(1, 2)
        v = self.v_proj(states).view(shape).transpose(1, 2)
        q, _ = apply_rotary_pos_emb(q, q, *rotary)
        k, _ = apply_rotary_pos_emb(k, k, *rotary_states)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        kwargs |= {"scaling": self.scaling, "dropout": 0.0}
        out, _ = attend(self, q, k, v, attention_mask, **kwargs)
        return self.o_proj(out.flatten(-2))


class HydraCrossHead(HydraAttentionHead):
    """``cross-attn``: a layer whose queries are embeddings, and whose keys are states."""

    arch = "cross-attn"

    def __init__(self, hidden_state_offset: int = 0, **settings: Any) -> None:
        super().__init__(hidden_state_offset, **settings)
        config: LlamaConfig = self.config
        self.cross_attn = _CrossAttention(config, layer_idx=0)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: Tensor,
        states: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        state_positions: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Embeddings and states ``[B, n, d]`` -> ``last_hidden_state`` ``[B, n, d]``.

        ``state_positions`` are those of the keys, by default ``position_ids``.
        """
        position_ids = self.positions(states, position_ids)
        if state_positions is None:
            state_positions = position_ids
        hidden = inputs_embeds + self.cross_attn(
            self.input_layernorm(inputs_embeds),
            self.input_layernorm(states),
            self.rotary_emb(states, position_ids=position_ids),
            self.rotary_emb(states, position_ids=state_positions),
            self.causal_mask(states, position_ids, attention_mask, cache),
            cache,
            **kwargs,
        )
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return BaseModelOutputWithPast(hidden, cache)


_VICUNA = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32} | _VICUNA


@register_model(parameters=235_941_888)
def hydra_eagle_attn_vicuna_7b(**overrides: Any) -> HydraEagleHead:
    """The head ``eagle-attn`` for Vicuna-7B v1.3."""
    return HydraEagleHead(**(_VICUNA_7B | overrides))


@register_model(parameters=202_383_360)
def hydra_cross_attn_vicuna_7b(**overrides: Any) -> HydraCrossHead:
    """The head ``cross-attn`` for Vicuna-7B v1.3."""
    return HydraCrossHead(**(_VICUNA_7B | overrides))
