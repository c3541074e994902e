"""The head that tells from a language model's state what will become of the text.

Paper: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(Yoshida, thesis, 2023, arXiv 2408.16241), with MAP's not dead yet (ACL 2024, arXiv 2311.08817). No
code was published, so the head's shape is ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.language._protocol import text_config
from zoo.models.registry import register_model

#: Probabilities are at least so large.
LEAST = 1e-6


class AttributeHead(nn.Module):
    """Two layers on the last state of a prefix: will the finished text have an attribute?

    For attributes that a length decides, there is a distribution over the tokens still to come in
    place of one probability.

    Args:
        d_model: width of the states.
        attribute: what it was trained for, such as ``non_empty`` or ``length``; one head serves all
            numbers of ``length``.
        hidden: width between the layers.
        horizon: for ``length``, numbers of tokens that are told apart: 0 to ``horizon``, the last
            of which stands for all above.
    """

    def __init__(
        self, d_model: int, attribute: str = "non_empty", hidden: int = 256, horizon: int = 128
    ) -> None:
        super().__init__()
        if hidden < 1 or horizon < 1:
            raise ZooError(f"hidden {hidden}, horizon {horizon}: expected 1 or more")
        self.config: dict[str, Any] = {
            "d_model": d_model,
            "attribute": attribute,
            "hidden": hidden,
            "horizon": horizon,
        }
        self.attribute, self.horizon = attribute, horizon
        self.by_length = attribute == "length"
        self.net = nn.Sequential(
            nn.Linear(d_model, hidden),
            nn.GELU(),
            nn.Linear(hidden, horizon + 1 if self.by_length else 1),
        )

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> AttributeHead:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        given = {k: v for k, v in (settings or {}).items() if k != "head"}
        return cls(**({"d_model": text_config(target).hidden_size} | given))

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nobody else publishes such heads."""
        return state_dict

    def forward(self, hidden: Tensor) -> Tensor:
        """States ``[..., d]`` -> logits ``[..., 1]``, or ``[..., horizon + 1]`` of lengths."""
        return self.net(hidden)

    def log_promise(self, hidden: Tensor, missing: Tensor) -> Tensor:
        """``log q(attribute | prefix)``, at least the logarithm of 1e-6.

        Args:
            hidden: states ``[..., d]`` after prefixes.
            missing: int64 ``[...]``, tokens that the text still lacks, below 0 if it is too long;
                heads of other attributes than ``length`` do not look at it.
        """
        logits = self(hidden).float()
        if not self.by_length:
            return F.logsigmoid(logits[..., 0]).clamp_min(math.log(LEAST))
        place = missing.clamp(0, self.horizon)
        found = logits.log_softmax(-1).gather(-1, place[..., None])[..., 0]
        return found.masked_fill(missing < 0, -math.inf).clamp_min(math.log(LEAST))

    def loss(self, hidden: Tensor, goal: Tensor) -> Tensor:
        """Cross-entropy at every prefix, ``[...]``.

        Args:
            hidden: states ``[..., d]``.
            goal: whether the finished text has the attribute, 0 or 1; for ``length`` how many
                tokens were still to come.
        """
        logits = self(hidden).float()
        if not self.by_length:
            return F.binary_cross_entropy_with_logits(
                logits[..., 0], goal.float(), reduction="none"
            )
        place = goal.long().clamp(0, self.horizon)
        return F.cross_entropy(logits.movedim(-1, 1), place, reduction="none")


@register_model(parameters=1_049_089)
def attribute_head_llama_7b(**overrides: Any) -> AttributeHead:
    """Whether a text of LLaMA-7B will be empty, which its likeliest one mostly is."""
    return AttributeHead(**({"d_model": 4096} | overrides))
