"""Tiny causal LMs with random weights, wild enough that their greedy texts do not repeat soon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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

from tests.fingerprints import fill
from zoo.decoding import Method, list_methods, method_class
from zoo.decoding.steering import open_session
from zoo.decoding.targets import Source, text_model
from zoo.errors import ZooError

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


def trials(model: nn.Module, encoder_decoder: bool = False) -> Iterator[tuple[str, Method]]:
    """Every method in every form that the model can be a target of, with untrained heads.

    What follows a colon in a name tells apart the forms of one method.
    """
    source = Source([[3, 4, 5]]) if encoder_decoder else None
    session = open_session(text_model(model, source), 1)
    for name in list_methods():
        torch.manual_seed(2)
        for form, method in method_class(name).trials(model).items():
            with contextlib.suppress(ZooError):
                method.check(session)
                yield f"{name}:{form}".rstrip(":"), method


def tiny_gpt2() -> nn.Module:
    """A frozen GPT-2 of 11 tokens with weights by formula, in the default dtype and all in it."""
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=32, **_TOKENS)
    return _by_formula(GPT2LMHeadModel(config))


def tiny_sliding() -> nn.Module:
    """A frozen Qwen2 of 11 tokens, whose second layer sees six of them."""
    shape = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    return _by_formula(make_model("qwen2", 2, vocab_size=11, intermediate_size=12, **shape))


def _by_formula(model: nn.Module) -> nn.Module:
    fill(model)
    return model.to(torch.get_default_dtype()).eval().requires_grad_(False)
