"""What decoding one more token costs, by count: the bytes that it must read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zoo.layers.cache import RecurrentState
from zoo.models.multimodal._mmmamba_config import DecoderConfig
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder
from zoo.models.multimodal.mmmamba import HYBRID


def decode_bytes(
    config: DecoderConfig, lengths: Sequence[int], bytes_per_value: int = 2, in_place: bool = True
) -> list[tuple[int, int]]:
    """Memory in use, and bytes that pass through it for one token of one sequence, at each length.

    Weights count once, but of the embedding tables one row; keys and values are read, and a
    recurrent state is read and written. Where decoding is bound by memory, as it is for one
    sequence, two models' speeds cannot differ by more than the ratio of the second number.

    Args:
        config: of the model.
        lengths: tokens that it has read.
        bytes_per_value: of weights, keys and values; scan states have four.
        in_place: attention reads each key and value once. False: a new cache is concatenated from
            the old one and the token, and repeated for every head of the queries, as in the code
            that HoVLE is published with where it has no fused attention.
    """
    with torch.device("meta"):
        model = MultimodalDecoder(replace(config, tie_embeddings=False))
        states = model.allocate_cache(1).layers
    weights = sum(p.numel() for p in model.parameters())
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    P = config.head_dim or config.hidden_size // config.num_heads
    attention = sum(not state.constant_size for state in states)
    per_token = 2 * attention * config.num_kv_heads * P * bytes_per_value
    repeats = config.num_heads // config.num_kv_heads
    # concatenation reads and writes, repetition reads and writes more, then all are read
    passes = 1 if in_place else 2 + (1 + repeats) + repeats
    recurrent = sum(
        state.conv.numel() * bytes_per_value + state.ssm.numel() * 4
        for state in states
        if isinstance(state, RecurrentState)
    )
    memory = weights * bytes_per_value + recurrent
    traffic = (weights - tables) * bytes_per_value + 2 * recurrent
    return [(memory + per_token * n, traffic + passes * per_token * n) for n in lengths]


@dataclass
class Bounds:
    """What a full-size student can gain over HoVLE, one value for each length.

    Attributes:
        speedup: how much faster it decodes at most.
        copying_speedup: the same against a teacher that copies its cache for each token.
        memory_saved: share of the teacher's weights and states that it does without.
    """

    speedup: list[float]
    copying_speedup: list[float]
    memory_saved: list[float]


def full_size_bounds(lengths: Sequence[int]) -> dict[str, Bounds]:
    """The bounds of both variants of mmMamba by :func:`decode_bytes`, in bfloat16."""
    teacher = decode_bytes(DecoderConfig(), lengths)
    copying = decode_bytes(DecoderConfig(), lengths, in_place=False)
    bounds = {}
    for name, layers in (("linear", []), ("hybrid", HYBRID)):
        student = decode_bytes(DecoderConfig(attention_layers=layers), lengths)
        rows = list(zip(teacher, copying, student, strict=True))
        bounds[name] = Bounds(
            [t[1] / s[1] for t, _, s in rows],
            [c[1] / s[1] for _, c, s in rows],
            [1 - s[0] / t[0] for t, _, s in rows],
        )
    return bounds
