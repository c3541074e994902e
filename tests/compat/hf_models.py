"""Every model of transformers whose file asks for functions of mamba_ssm or causal_conv1d, tiny."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from transformers import PreTrainedModel

#: Sizes by the names that configurations give them.
SIZES: dict[str, Any] = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
    # Mamba's layers
    state_size=8,
    ssm_state_size=8,
    mamba_d_state=8,
    mamba_dt_rank=4,
    mamba_n_heads=8,
    mamba_num_heads=8,
    mamba_d_head=8,
    mamba_head_dim=8,
    mamba_n_groups=2,
    mamba_ngroups=2,
    mamba_chunk_size=8,
    chunk_size=8,
    n_groups=2,
    # delta-rule layers
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_head_dim=8,
    linear_num_heads=4,
    kv_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    # experts
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    shared_intermediate_size=16,
    moe_shared_expert_intermediate_size=16,
    sliding_window=16,
)

DELTA = {"layer_types": ["linear_attention", "full_attention"]}
#: Folder of transformers -> class of the model, and what its configuration needs besides.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bailing_hybrid": ("BailingHybridForCausalLM", DELTA | {"num_key_value_heads": 4}),
    "bamba": ("BambaForCausalLM", {"attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1ForCausalLM", {"mamba_d_ssm": 64}),
    "falcon_mamba": ("FalconMambaForCausalLM", {}),
    "glm5_next": ("Glm5NextTextModel", {"num_key_value_heads": 4, "qk_rope_head_dim": 0}),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", {"layer_types": ["mamba", "attention"]}),
    "inkling": ("InklingTextModel", {}),
    "inkling2": ("Inkling2TextModel", {}),
    "inkling2_loop": ("Inkling2LoopTextModel", {}),
    "jamba": ("JambaForCausalLM", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "kimi_linear": ("KimiLinearForCausalLM", DELTA | {"num_key_value_heads": 4}),
    "lara_mini": ("LaraMiniForCausalLM", {}),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "lfm3": ("Lfm3ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("MambaForCausalLM", {}),
    "mamba2": ("Mamba2ForCausalLM", {"num_heads": 8, "head_dim": 8}),
    "nemotron_h": ("NemotronHForCausalLM", {"layers_block_type": ["mamba", "attention"]}),
    "olmo_hybrid": ("OlmoHybridForCausalLM", {}),
    "qwen3_5": ("Qwen3_5ForCausalLM", DELTA),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", DELTA),
    "qwen3_next": ("Qwen3NextForCausalLM", DELTA),
    "qwen4_exp": ("Qwen4ExpTextModel", {}),
    "zamba": (
        "ZambaForCausalLM",
        {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3},
    ),
    "zamba2": ("Zamba2ForCausalLM", {"layers_block_type": ["mamba", "hybrid"]}),
}


#: Those that are the text part of a larger model and do not generate by themselves.
PARTS = ("glm5_next", "inkling", "inkling2", "inkling2_loop", "qwen4_exp")


def build(folder: str) -> PreTrainedModel:
    """A model of a few thousand parameters."""
    name, more = MODELS[folder]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    model = getattr(module, name)
    kind = model.config_class
    given = {key: value for key, value in SIZES.items() if hasattr(kind, key)}
    config = kind(**(given | more))
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return model(config)
