"""Tiny random models of the classes of transformers that people decode, and how each is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig
from transformers.models.auto import modeling_auto

VOCAB = 48
TREE, STATES, AGAIN = "tree attention", "copied states", "recomputation"
#: Whatever of this a configuration knows.
SHAPE = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 6),
    "vocab_size": VOCAB,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_DECODER = {"is_decoder": True, "is_encoder_decoder": False}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_T5 = {"d_kv": 8, "d_ff": 48, "decoder_start_token_id": 2}
_LOCAL = [[["global", "local"], 1]]
_START = {"decoder_start_token_id": 2}


@dataclass(frozen=True)
class Target:
    """One kind of model.

    Attributes:
        model_type: the name of its configuration in transformers.
        kind: of the session that must be found for it.
        settings: what its tiny form needs besides :data:`SHAPE`; None takes a setting out of that.
    """

    model_type: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


#: By the name that the documentation gives them.
TARGETS = {
    # ordinary attention, rotary or learned positions
    "Llama": Target("llama", TREE),
    "Qwen2": Target("qwen2", TREE),
    "Qwen3": Target("qwen3", TREE),
    "Mistral": Target("mistral", TREE),
    "Mixtral": Target("mixtral", TREE),
    "Gemma": Target("gemma", TREE),
    "Gemma 2": Target("gemma2", TREE),
    "Gemma 3": Target("gemma3_text", TREE),
    "Phi": Target("phi", TREE),
    "Phi-3": Target("phi3", TREE),
    "Phi-3.5-MoE": Target("phimoe", TREE),
    "OLMo 2": Target("olmo2", TREE),
    "Granite": Target("granite", TREE),
    "Cohere 2": Target("cohere2", TREE),
    "StableLM": Target("stablelm", TREE),
    "StarCoder 2": Target("starcoder2", TREE),
    "GPT-2": Target("gpt2", TREE),
    "GPT-NeoX": Target("gpt_neox", TREE),
    "GPT-J": Target("gptj", TREE, {"rotary_dim": 4}),
    "OPT": Target("opt", TREE),
    "gpt-oss": Target("gpt_oss", TREE),
    "GLM-4": Target("glm4", TREE),
    "SmolLM3": Target("smollm3", TREE),
    "Falcon": Target("falcon", TREE, {"alibi": False, "head_dim": None}),
    "Llama 4": Target(
        "llama4_text", TREE, {"attention_chunk_size": 6, "intermediate_size_mlp": 48}
    ),
    "DeepSeek-V2": Target("deepseek_v2", TREE, {**_LATENT, "topk_method": "greedy"}),
    "DeepSeek-V3": Target("deepseek_v3", TREE, _LATENT),
    # positions that follow from the number of tokens in the cache
    "MPT": Target("mpt", STATES),
    "BLOOM": Target("bloom", STATES),
    "Falcon (ALiBi)": Target("falcon", STATES, {"alibi": True, "head_dim": None}),
    "GPT-Neo": Target("gpt_neo", STATES, {"attention_types": _LOCAL, "window_size": 6}),
    "RoFormer": Target("roformer", STATES, _DECODER),
    "RoBERTa": Target("roberta", STATES, _DECODER),
    # recurrent and convolutional layers
    "Mamba": Target("mamba", STATES, {"state_size": 8}),
    "Mamba-2": Target("mamba2", STATES, {"head_dim": 16, "state_size": 8, "n_groups": 1}),
    "Falcon-Mamba": Target("falcon_mamba", STATES, {"state_size": 8}),
    "Jamba": Target("jamba", STATES, {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "Bamba": Target("bamba", STATES, {**_MAMBA, "attn_layer_indices": [1]}),
    "Granite 4": Target(
        "granitemoehybrid", STATES, {**_MAMBA, "layer_types": ["mamba", "attention"]}
    ),
    "LFM2": Target("lfm2", STATES, {"layer_types": ["conv", "full_attention"]}),
    "Qwen3-Next": Target("qwen3_next", STATES, _LINEAR),
    # no memory, or one of its own kind
    "RecurrentGemma": Target("recurrent_gemma", AGAIN, {"num_hidden_layers": 3, "lru_width": 32}),
    "RWKV": Target("rwkv", AGAIN),
    "OpenAI GPT": Target("openai-gpt", AGAIN),
    # encoder-decoders
    "T5": Target("t5", STATES, _T5),
    "mT5": Target("mt5", STATES, _T5),
    "BART": Target("bart", STATES, _START),
    "mBART": Target("mbart", STATES, _START),
    "Marian": Target("marian", STATES, _START),
    "Pegasus": Target("pegasus", STATES, _START),
}
#: Those whose ``input_ids`` an encoder reads.
ENCODER_DECODERS = ("T5", "mT5", "BART", "mBART", "Marian", "Pegasus")


def make_target(name: str, scale: float = 8.0) -> nn.Module:
    """A model of :data:`TARGETS` with random weights, whose texts do not repeat at once.

    Args:
        name: one of them.
        scale: of all matrices, so that no two tokens are nearly as probable.
    """
    target = TARGETS[name]
    kind = transformers.CONFIG_MAPPING[target.model_type]
    known = kind()
    settings = {key: value for key, value in SHAPE.items() if hasattr(known, key)}
    settings |= target.settings
    for key in [key for key, value in target.settings.items() if value is None]:
        del settings[key]
    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name in ENCODER_DECODERS:
        names = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    torch.manual_seed(0)
    model = getattr(transformers, names[target.model_type])(kind(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(scale)
    start = target.settings.get("decoder_start_token_id")
    model.generation_config = GenerationConfig(pad_token_id=0, decoder_start_token_id=start)
    return model


@torch.no_grad()
def greedy_text(model: nn.Module, ids: torch.Tensor, count: int) -> list[int]:
    """The definition: no cache, the whole text again for every token; ``ids`` is ``[1, T]``."""
    encoded = {}
    text = ids
    if model.config.is_encoder_decoder:
        encoded = {"input_ids": ids}
        text = torch.tensor([[model.generation_config.decoder_start_token_id]])
    for _ in range(count):
        inputs = {**encoded, "decoder_input_ids": text} if encoded else {"input_ids": text}
        logits = model(**inputs, use_cache=False).logits[:, -1:]
        text = torch.cat([text, logits.argmax(-1)], dim=1)
    return text[0, -count:].tolist()
