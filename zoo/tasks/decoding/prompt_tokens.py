"""Training of PPD's prompt tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.arguments import blaming
from zoo.models.decoding._slots import Ahead
from zoo.models.decoding.ppd import PromptTokens
from zoo.models.language._protocol import text_config
from zoo.tasks.decoding._slot_training import SlotTraining


class PromptTokenTraining(SlotTraining):
    """Prompt tokens learn what the language model will say behind tokens that are not known yet.

    The loss is equation 1 of the authors' code; their teacher is ``greedy``.

    Args:
        head_args: arguments of :class:`PromptTokens`.
        kwargs: see :class:`SlotTraining`.
    """

    def __init__(self, target: str, head_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.head_args = head_args or {}
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """Prompt tokens that start near the mean of the embeddings."""
        with blaming("model.init_args.head_args"):
            embedding = target.get_input_embeddings().weight.detach()
            shape = {
                "hidden_size": embedding.shape[1],
                "vocab_size": text_config(target).vocab_size,
            }
            start = {"start": embedding.float().mean(0), "lm_head": None}
            if self.head_args.get("use_custom_lm_head"):
                start["lm_head"] = target.get_output_embeddings().weight.detach()
            return PromptTokens(**(shape | start | self.head_args))

    def behind(self, target: nn.Module, ids: Tensor, cuts: Tensor) -> tuple[Ahead, Tensor]:
        """What the prompt tokens say."""
        said = self.eval_or_train()["head"].behind(target, ids, cuts)
        return said, said.slots.new_zeros(())
