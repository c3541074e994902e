"""Tiny causal LMs with random weights, wild enough that their greedy texts do not repeat soon."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from zoo.models.decoding._hydra_attention import HydraCrossHead, HydraEagleHead
from zoo.models.decoding._one_layer import layer_settings
from zoo.models.decoding.hydra import HydraHeads
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.decoding.specdec_pp import AcceptanceHead

VOCAB, WIDTH = 50, 32
_TOKENS = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}


def make_model(kind: str, layers: int = 3, **overrides) -> nn.Module:
    torch.manual_seed(0)
    common = {"vocab_size": VOCAB, "initializer_range": 0.3, **_TOKENS}
    if kind == "gpt2":
        config = GPT2Config(n_embd=WIDTH, n_layer=layers, n_head=4, n_positions=256, **common)
        return GPT2LMHeadModel(config).eval()
    if kind == "mamba":
        config = MambaConfig(
            hidden_size=WIDTH, num_hidden_layers=layers - 1, state_size=8, **common
        )
        return MambaForCausalLM(config).eval()
    if kind == "jamba":  # every second layer is attention
        config = JambaConfig(
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=layers - 1,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=1,
            mamba_d_state=8,
            **common,
        )
        return JambaForCausalLM(config).eval()
    shape = dict(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    settings = {**shape, **common, **overrides}
    if kind == "qwen2":  # the last layers see six tokens only
        sliding = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)
        return Qwen2ForCausalLM(Qwen2Config(**sliding, **settings)).eval()
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(sliding_window=7, **settings)).eval()
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def noisy(model: nn.Module, noise: float = 0.03) -> nn.Module:
    """A copy that often agrees with the model, for use as its draft."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn(p.shape, generator=generator))
    return model


def method_options(model: nn.Module) -> dict[str, dict]:
    """Every method that the model can be a target of, with untrained heads.

    What follows a colon in a name tells apart the kinds of heads of one method.
    """
    torch.manual_seed(2)
    vocab = model.config.vocab_size
    head = {"lm_head": model.get_output_embeddings().weight.data}
    draft = noisy(model)
    options = {
        "plain": {},
        "token_recycling": {},
        "medusa": {"heads": MedusaHeads(WIDTH, vocab, 4, **head)},
        "hydra": {"heads": HydraHeads(WIDTH, vocab, 4, **head)},
        "draft_tree": {"draft": draft},
        "spectr": {"draft": draft, "drafts": 4, "length": 3},
        "speculative": {"draft": draft, "length": 3},
        "specdec_pp": {"draft": draft, "head": AcceptanceHead(WIDTH, 2), "threshold": 0.5},
    }
    layer = {"intermediate_size": 48, "num_attention_heads": 4} | layer_settings(model.config)
    for kind, heads in (
        ("prefix", HydraHeads(WIDTH, vocab, 4, 2, arch="prefix-mlp", prefix=layer, **head)),
        ("ungrounded", HydraHeads(WIDTH, vocab, 4, 2, grounded=False, **head)),
        ("cross-attn", HydraCrossHead(**layer)),
        ("eagle-attn", HydraEagleHead(1, **layer)),
    ):
        options[f"hydra:{kind}"] = {"heads": heads}
    if hasattr(model, "model") and hasattr(model.model, "layers"):
        adapter = KangarooAdapter.for_target(model)
        options["kangaroo"] = {"adapter": adapter, "threshold": 0.05}
    return options
