"""Medusa: several heads predict several tokens ahead, each on its own.

Paper: Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (2024, arXiv
2401.10774). Keys are those of the authors' ``medusa_lm_head.pt``; outputs, gradients and candidates
agree with their code (FasterDecoding/Medusa, commit e2a5d20) on random weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.res_block import ResBlock
from zoo.models.decoding._protocol import output_rows
from zoo.models.decoding._state_dicts import count_heads, part_of
from zoo.models.language._protocol import text_config
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
        self._starts_from_target = lm_head is not None
        if lm_head is not None:
            for head in self.heads:
                head[-1].weight.data.copy_(lm_head)

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> MedusaHeads:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        settings, config = settings or {}, text_config(target)
        # the configuration of the authors' old files says 2, and they hold 5
        found = count_heads(keys, r"(?:heads\.|medusa_head\.)?(\d+)\.")
        d_model = settings.get("d_model", config.hidden_size)
        vocab_size = settings.get("vocab_size", config.vocab_size)
        return cls(
            d_model,
            vocab_size,
            found or settings.get("num_heads", settings.get("medusa_num_heads", 5)),
            settings.get("num_layers", settings.get("medusa_num_layers", 1)),
            output_rows(target, vocab_size, d_model),
        )

    @property
    def num_heads(self) -> int:
        """Number of tokens proposed beyond the LM's own."""
        return len(self.heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., d]`` -> logits ``[K, ..., V]``."""
        return torch.stack([head(hidden) for head in self.heads])

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys, with or without ``medusa_head.`` and the LM's own weights, to ours.

        Heads of the authors' later training have no output layers; they use the LM's, which these
        must have been built with.
        """
        if any(key.startswith("heads.") for key in state_dict):
            return state_dict
        mapped = {f"heads.{key}": t for key, t in part_of(state_dict, "medusa_head.").items()}
        outputs = {k: t for k, t in self.state_dict().items() if ".linear." not in k}
        if self._starts_from_target and not outputs.keys() & mapped.keys():
            mapped |= outputs
        return mapped


def _vicuna(d_model: int, overrides: dict[str, Any]) -> MedusaHeads:
    return MedusaHeads(**({"d_model": d_model, "vocab_size": 32000} | overrides))


@register_model(
    source="hf://FasterDecoding/medusa-vicuna-7b-v1.3/medusa_lm_head.pt", parameters=739_266_560
)
def medusa_vicuna_7b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-7B v1.3."""
    return _vicuna(4096, overrides)


@register_model(
    source="hf://FasterDecoding/medusa-vicuna-13b-v1.3/medusa_lm_head.pt", parameters=950_297_600
)
def medusa_vicuna_13b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-13B v1.3."""
    return _vicuna(5120, overrides)


@register_model(
    source="hf://FasterDecoding/medusa-vicuna-33b-v1.3/medusa_lm_head.pt", parameters=1_286_504_960
)
def medusa_vicuna_33b(**overrides: Any) -> MedusaHeads:
    """Five Medusa-1 heads for Vicuna-33B v1.3."""
    return _vicuna(6656, overrides)
