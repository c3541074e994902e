"""Medusa: several heads predict several tokens ahead, each on its own.

Paper: Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (2024, arXiv
2401.10774). Keys are those of the authors' ``medusa_lm_head.pt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.res_block import ResBlock
from zoo.models.registry import register_model


class MedusaHeads(nn.Module):
    """K heads on the last hidden state of a causal LM.

    Head i (from 0) at position t predicts token t + 2 + i; token t + 1 is the LM's own.

    Args:
        d_model: width of the hidden states.
        vocab_size: of the LM.
        num_heads: K.
        num_layers: residual blocks of a head; they are one block applied so often, as in the
            authors' code.
        lm_head: weight ``[V, d]`` that every head's output starts from.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        num_heads: int = 5,
        num_layers: int = 1,
        lm_head: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "d_model": d_model,
            "vocab_size": vocab_size,
            "num_heads": num_heads,
            "num_layers": num_layers,
        }
        self.heads = nn.ModuleList(
            nn.Sequential(
                *([ResBlock(d_model)] * num_layers), nn.Linear(d_model, vocab_size, bias=False)
            )
            for _ in range(num_heads)
        )
        if lm_head is not None:
            for head in self.heads:
                head[-1].weight.data.copy_(lm_head)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any], target: Any) -> MedusaHeads:
        """Build from a ``config.json``, ours or the authors', for a target's configuration."""
        return cls(
            settings.get("d_model", target.hidden_size),
            settings.get("vocab_size", target.vocab_size),
            # the authors' old files say 2 and hold 5
            settings.get("num_heads", 5),
            settings.get("num_layers", settings.get("medusa_num_layers", 1)),
        )

    @property
    def num_heads(self) -> int:
        """Number of tokens proposed beyond the LM's own."""
        return len(self.heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., d]`` -> logits ``[K, ..., V]``."""
        return torch.stack([head(hidden) for head in self.heads])

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys, with or without ``medusa_head.`` and the LM's own weights, to ours."""
        prefix = "medusa_head."
        if any(key.startswith(prefix) for key in state_dict):
            state_dict = {
                key.removeprefix(prefix): t
                for key, t in state_dict.items()
                if key.startswith(prefix)
            }
        elif any(key.startswith("heads.") for key in state_dict):
            return state_dict
        return {f"heads.{key}": t for key, t in state_dict.items()}


def _vicuna(d_model: int, **overrides: Any) -> MedusaHeads:
    return MedusaHeads(**({"d_model": d_model, "vocab_size": 32000} | overrides))


@register_model(source="hf://FasterDecoding/medusa-vicuna-7b-v1.3/medusa_lm_head.pt")
def medusa_vicuna_7b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-7B v1.3."""
    return _vicuna(4096, **overrides)


@register_model(source="hf://FasterDecoding/medusa-vicuna-13b-v1.3/medusa_lm_head.pt")
def medusa_vicuna_13b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-13B v1.3."""
    return _vicuna(5120, **overrides)


@register_model(source="hf://FasterDecoding/medusa-vicuna-33b-v1.3/medusa_lm_head.pt")
def medusa_vicuna_33b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-33B v1.3."""
    return _vicuna(6656, **overrides)
