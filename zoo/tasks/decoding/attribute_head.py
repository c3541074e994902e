"""Training of the head that tells whether a text will have an attribute, on sampled texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from zoo.arguments import blaming
from zoo.decoding import generate
from zoo.decoding.attributes import Attribute, find_attribute
from zoo.decoding.constraints import token_set
from zoo.decoding.targets import eval_mode
from zoo.errors import ZooError
from zoo.models.decoding.conditional_beam import AttributeHead
from zoo.tasks.decoding._draft_training import DraftTraining
from zoo.tasks.language.language_modeling import masked_mean


class AttributeTraining(DraftTraining):
    """The target continues prompts by chance; at every prefix the head learns how they end.

    Args:
        target: see :class:`DraftTraining`.
        attribute: what is asked of a text: ``non_empty``, ``length``, ``varied=N``, ``complete``.
        head_args: further arguments of :class:`AttributeHead`.
        prompt_length: tokens of a sample that the target goes on from.
        new_tokens: most tokens of a continuation.
        stop_tokens: what ends a text; by default what the target's settings say.
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(
        self,
        target: str,
        attribute: str = "non_empty",
        head_args: dict[str, Any] | None = None,
        prompt_length: int = 32,
        new_tokens: int = 64,
        stop_tokens: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if prompt_length < 1 or new_tokens < 1:
            raise ZooError(
                f"prompt_length {prompt_length}, new_tokens {new_tokens}: expected 1 or more"
            )
        self.attribute, self.head_args = attribute, head_args or {}
        # one head serves all lengths
        self.judged = find_attribute("length=1" if attribute == "length" else attribute)
        self.prompt_length, self.new_tokens = prompt_length, new_tokens
        self.stop_tokens = stop_tokens
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """A head of the target's width."""
        with blaming("model.init_args.head_args"):
            settings = {"attribute": self.attribute, **self.head_args}
            return AttributeHead.for_target(target, settings)

    @override
    def score_names(self) -> Sequence[str]:
        return ("have_it", "acc_start", "acc")

    def method_options(self) -> dict[str, Any]:
        """The head."""
        return {"heads": self.eval_model["head"].eval()}

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy at all prefixes of sampled texts.

        Scores: ``have_it``, the share of texts with the attribute (of ``length``: mean length
        relative to the longest); ``acc_start`` and ``acc``, how often the head's best guess is
        right, before the first token and everywhere.
        """
        lm_loss = mask.new_zeros(())
        target = self.language_model("target")
        if self.train_target:
            lm_loss = self.read(ids, mask)[1]
        hidden, goal, counts = sampled(
            target,
            ids[:, : self.prompt_length],
            self.judged,
            self.attribute == "length",
            self.new_tokens,
            self.stop_tokens,
        )
        head = self.eval_or_train()["head"]
        loss = masked_mean(head.loss(hidden, goal), counts)
        logits = head(hidden)
        if head.by_length:
            right = logits.argmax(-1) == goal.clamp_max(head.horizon)
            have_it = goal[:, 0].float().mean() / self.new_tokens
        else:
            right = (logits[..., 0] > 0) == (goal > 0)
            have_it = goal[:, 0].float().mean()
        scores = {
            "have_it": have_it,
            "acc_start": right[:, 0].float().mean(),
            "acc": masked_mean(right.float(), counts),
        }
        return lm_loss, loss, scores


@torch.no_grad()
def sampled(
    target: nn.Module,
    prompts: Tensor,
    attribute: Attribute,
    by_length: bool,
    new_tokens: int,
    stop_tokens: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Texts that a model draws, as a head reads them.

    Args:
        target: the language model.
        prompts: int64 ``[B, P]``.
        attribute: what is asked of the new part.
        by_length: the goal is the number of tokens to come, not whether there is the attribute.
        new_tokens: most tokens of the new part.
        stop_tokens: what ends it; None: what the model says.

    Returns:
        Last states ``[B, n + 1, d]`` after 0 to n new tokens, the goal ``[B, n + 1]`` at each, and
        1 where a prefix is one that goes on.
    """
    seed = int(torch.randint(2**62, ()))
    out = generate(
        target,
        prompts,
        "plain",
        temperature=1.0,
        max_new_tokens=new_tokens,
        stop_tokens=stop_tokens,
        seed=seed,
    )
    stop = frozenset(stop_tokens or ()) if stop_tokens is not None else _stop_tokens(target)
    with eval_mode(target):
        read = target(input_ids=out.sequences, output_hidden_states=True, use_cache=False)
    hidden = read.hidden_states[-1][:, prompts.shape[1] - 1 :]  # [B, n + 1, d]
    goal = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    counts = torch.zeros(hidden.shape[:2], device=hidden.device)
    for row, text in enumerate(out.new_tokens):
        ended = text[-1] in stop
        length = len(text) - ended
        if by_length:
            goal[row] = (length - torch.arange(goal.shape[1], device=goal.device)).clamp_min(0)
        else:
            goal[row] = int(attribute.holds(text, ended))
        # what a text says of itself when it is cut off is known without the head
        counts[row, : len(text)] = 1
    return hidden, goal, counts


def _stop_tokens(target: nn.Module) -> frozenset[int]:
    settings = getattr(target, "generation_config", target.config)
    return token_set(settings.eos_token_id, "eos_token_id")
