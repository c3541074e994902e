"""Training of the maps of hidden transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from zoo.arguments import blaming
from zoo.decoding.targets import eval_mode
from zoo.models.decoding._slots import Ahead
from zoo.models.decoding.hidden_transfer import HiddenTransfer, default_layers
from zoo.models.language._protocol import text_config
from zoo.models.language._split_decoder import SplitDecoder
from zoo.tasks.decoding._slot_training import SlotTraining


class HiddenTransferTraining(SlotTraining):
    """Maps learn to turn a state into those of the next tokens, judged by what is said of them.

    Beside the scores of all slots, ``similar_layer{n}`` are the cosines of pseudo and true states
    after n layers.

    Args:
        head_args: arguments of :class:`HiddenTransfer`.
        state_weight: of the mean squared distance from the true states after each layer that the
            pseudo states pass.
        kwargs: see :class:`SlotTraining`.
    """

    def __init__(
        self,
        target: str,
        head_args: dict[str, Any] | None = None,
        state_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.head_args, self.state_weight = head_args or {}, state_weight
        self._split: SplitDecoder | None = None
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """Maps that copy the state."""
        config = text_config(target)
        self._depth = config.num_hidden_layers
        with blaming("model.init_args.head_args"):
            shape = {"hidden_size": config.hidden_size, "layers": default_layers(self._depth)}
            head = HiddenTransfer(**(shape | self.head_args))
            head.check(target)
        return head

    @override
    def score_names(self) -> Sequence[str]:
        first = self.model["head"].layers[0]
        return [
            *super().score_names(),
            *(f"similar_layer{depth}" for depth in range(first + 1, self._depth + 1)),
        ]

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Divergence of what is said at pseudo states, and their distance from the true ones."""
        self._similar: dict[str, Tensor] = {}
        lm_loss, loss, scores = super().losses(ids, mask)
        return lm_loss, loss, scores | self._similar

    def behind(self, target: nn.Module, ids: Tensor, cuts: Tensor) -> tuple[Ahead, Tensor]:
        """What is said at the pseudo states, and how far from the true ones they are."""
        if self._split is None or self._split.model is not target:
            with eval_mode(target):
                self._split = SplitDecoder(target)
        apart: list[Tensor] = []

        def follow(depth: int, pseudo: Tensor, text: Tensor) -> None:
            rows = torch.arange(len(ids), device=ids.device)[:, None, None]
            slots = torch.arange(pseudo.shape[1], device=ids.device)[:, None]
            true = text[rows, cuts[:, None] + 1 + slots].detach()  # [B, m, C, d]
            cosine = F.cosine_similarity(pseudo.detach(), true, dim=-1)
            self._similar[f"similar_layer{depth}"] = cosine.mean()
            if self.state_weight:
                apart.append(F.mse_loss(pseudo, true))

        said = self.eval_or_train()["head"](self._split, ids, cuts, follow)
        further = said.slots.new_zeros(())
        if apart:
            further = self.state_weight * torch.stack(apart).mean()
        return said, further
