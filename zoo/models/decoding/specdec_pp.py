"""SpecDec++'s acceptance head: how likely is it that the target accepts this drafted token?

Paper: SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths (2024, arXiv
2405.19715). Keys are those of the authors' published head (Kaffaljidhmah2/SpecDec_pp, commit
9c52edc).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from zoo.layers.res_block import ResBlock
from zoo.models.language._protocol import text_config
from zoo.models.registry import register_model


class AcceptanceHead(nn.Module):
    """Residual blocks and a two-way classifier on the draft model's last hidden state.

    Args:
        hidden_size: width of the draft model.
        num_layers: residual blocks; they are one block applied so often, as in the authors' code.
    """

    def __init__(self, hidden_size: int, num_layers: int = 3) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"hidden_size": hidden_size, "num_layers": num_layers}
        block = ResBlock(hidden_size, zero_init=False)
        self.model = nn.Sequential(*([block] * num_layers), nn.Linear(hidden_size, 2))

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> AcceptanceHead:
        """Build for a draft model; see :func:`zoo.decoding.heads.head_for`."""
        settings = settings or {}
        size = settings.get("hidden_size", text_config(target).hidden_size)
        return cls(size, settings.get("num_layers", 3))

    def forward(self, hidden: Tensor) -> Tensor:
        """States ``[..., d]`` at drafted tokens -> logits ``[..., 2]`` of (rejected, accepted)."""
        return self.model(hidden)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill in the names of the shared block that a file with unique tensors lacks."""
        shared = {
            match[1]: t
            for key, t in state_dict.items()
            if (match := re.fullmatch(r"model\.\d+\.(linear\..*)", key))
        }
        filled = dict(state_dict)
        for i in range(self.config["num_layers"]):
            for name, t in shared.items():
                filled.setdefault(f"model.{i}.{name}", t)
        return filled


@register_model(source="hf://hacky/acchead-llama2-chat-7bx70b", parameters=16_789_506)
def specdec_pp_llama2_chat_7bx70b(**overrides: Any) -> AcceptanceHead:
    """Acceptance head of LLaMA-2-chat 7B drafting for 70B."""
    return AcceptanceHead(**({"hidden_size": 4096} | overrides))
