"""What decoding one more token costs, by count: the bytes that it must read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from zoo.layers.cache import RecurrentState
from zoo.models.multimodal.decoder import MultimodalDecoder
from zoo.models.multimodal.decoder_config import DecoderConfig


def decode_bytes(
    config: DecoderConfig, lengths: Sequence[int], bytes_per_value: int = 2
) -> list[tuple[int, int]]:
    """Memory in use, and bytes that pass through it for one token of one sequence, at each length.

    Weights count once, but of the embedding tables one row; keys and values are read, and a
    recurrent state is read and written. Where decoding is bound by memory, as it is for one
    sequence, two models' speeds cannot differ by more than the ratio of the second number.

    Args:
        config: of the model.
        lengths: tokens that it has read.
        bytes_per_value: of weights, keys and values; scan states have four.
    """
    with torch.device("meta"):
        model = MultimodalDecoder(replace(config, tie_embeddings=False))
        states = model.allocate_cache(1).layers
    weights = sum(p.numel() for p in model.parameters())
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    P = config.head_dim or config.hidden_size // config.num_heads
    attention = sum(not state.constant_size for state in states)
    per_token = 2 * attention * config.num_kv_heads * P * bytes_per_value
    recurrent = sum(
        state.conv.numel() * bytes_per_value + state.ssm.numel() * 4
        for state in states
        if isinstance(state, RecurrentState)
    )
    memory = weights * bytes_per_value + recurrent
    traffic = (weights - tables) * bytes_per_value + 2 * recurrent
    return [(memory + per_token * length, traffic + per_token * length) for length in lengths]
