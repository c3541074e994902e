"""Small Llama-style language models that anyone can train: target and draft of small recipes."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from zoo.errors import ZooError, suggest
from zoo.models.registry import register_model


def _llama(settings: dict[str, Any], overrides: dict[str, Any]) -> LlamaForCausalLM:
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    known = LlamaConfig().to_dict()
    for name in overrides:
        if name not in known:
            raise ZooError(f"{name} is no setting of Llama; {suggest(name, known)}")
    return LlamaForCausalLM(LlamaConfig(**(special | settings | overrides)))


@register_model(parameters=2_034_720)
def base_lm_small(**overrides: Any) -> LlamaForCausalLM:
    """Target of the small recipes: 6 layers, width 160, grouped-query attention, 1,024 tokens."""
    shape = dict(num_hidden_layers=6, hidden_size=160, intermediate_size=432)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    common = dict(vocab_size=1024, max_position_embeddings=1024, tie_word_embeddings=False)
    return _llama(shape | heads | common, overrides)


@register_model(parameters=307_488)
def base_lm_draft(**overrides: Any) -> LlamaForCausalLM:
    """Draft model of the small recipes: 1 layer, width 96, the same 1,024 tokens."""
    shape = dict(num_hidden_layers=1, hidden_size=96, intermediate_size=256)
    heads = dict(num_attention_heads=3, num_key_value_heads=3)
    common = dict(vocab_size=1024, max_position_embeddings=1024, tie_word_embeddings=False)
    return _llama(shape | heads | common, overrides)
