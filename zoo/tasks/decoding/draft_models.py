"""Training beside a draft model: itself, or a head that predicts what is accepted of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC
from typing_extensions import override

import zoo
from zoo.errors import ZooError
from zoo.models.decoding.specdec_pp import AcceptanceHead
from zoo.models.language._causal_lm import save_causal_lm
from zoo.tasks._scores import Scores
from zoo.tasks.decoding._draft_training import (
    Batch,
    DraftTraining,
    next_token_loss,
    soft_cross_entropy,
)
from zoo.tasks.language.language_modeling import masked_mean


class AcceptanceTraining(DraftTraining):
    """SpecDec++'s head: predict from the draft model's state whether the target accepts a token.

    At every position of the text the draft model proposes one token; the label is the probability
    ``min(1, p / q)`` that it is accepted. The draft model then reads a mixture of its own tokens
    and the text's, since it sees its own tokens later on, and the head is trained on its own ones.

    Args:
        draft: the draft model, given like ``target``.
        draft_args: arguments of a registered draft model.
        num_layers: residual blocks of the head.
        keep: share of positions where the text's token stays (r of the paper).
        reject_weight: weight of rejections in the loss (w_rej).
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(
        self,
        target: str,
        draft: str,
        draft_args: dict[str, Any] | None = None,
        num_layers: int = 3,
        keep: float = 0.15,
        reject_weight: float = 6.0,
        **kwargs: Any,
    ) -> None:
        self.draft_name, self.draft_args = draft, draft_args or {}
        self.num_layers, self.keep, self.reject_weight = num_layers, keep, reject_weight
        super().__init__(target, **kwargs)

    def configure_models(self) -> None:
        """Both language models, then the head on the draft model's states."""
        super().configure_models()
        self._add_language_model("draft", self.draft_name, self.draft_args)
        draft, target = self.language_model("draft"), self.language_model("target")
        if draft.config.vocab_size != target.config.vocab_size:
            raise ZooError(
                f"model.init_args.draft has {draft.config.vocab_size} tokens, the target "
                f"{target.config.vocab_size}: both need one vocabulary"
            )
        self.model["head"] = AcceptanceHead(draft.config.hidden_size, self.num_layers)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """The area under the curve as well: each proposal counts as accepted or rejected by a throw
        of its own probability."""
        return super().configure_metrics(split) | {"auc": BinaryAUROC(thresholds=200)}

    @override
    def score_names(self) -> Sequence[str]:
        return ("accepted",)

    def evaluate(self, batch: Batch, scores: Scores) -> None:
        """Measure one batch."""
        super().evaluate(batch, scores)
        scores["auc"].update(*self._thrown)

    def build_head(self, target: nn.Module) -> nn.Module:
        """Made later, when the draft model is known."""
        return nn.Identity()

    def method_options(self) -> dict[str, Any]:
        """Draft model and head."""
        return {
            "draft": self.language_model("draft").eval(),
            "head": self.eval_model["head"].eval(),
        }

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weighted binary cross-entropy with the probabilities of acceptance."""
        draft = self.language_model("draft")
        out, lm_loss = self.read(ids, mask)
        with torch.set_grad_enabled(self.train_target and self.training):
            proposal = draft(input_ids=ids, use_cache=False).logits
        if self.train_target:
            lm_loss = lm_loss + next_token_loss(proposal, ids, mask)
        with torch.no_grad():
            q, p = (t[:, :-1].float().softmax(-1) for t in (proposal, out.logits))
            drawn = torch.multinomial(q.flatten(0, 1), 1).view(q.shape[:2])  # [B, T - 1]
            ratio = (p / q.clamp_min(1e-20)).gather(-1, drawn[..., None]).squeeze(-1)
            accepted = ratio.clamp_max(1.0)
            kept = torch.rand_like(accepted) < self.keep
            mixed = torch.cat([ids[:, :1], torch.where(kept, ids[:, 1:], drawn)], dim=1)
            states = draft(input_ids=mixed, output_hidden_states=True, use_cache=False)
            counted = mask[:, 1:] * ~kept
        head = self.eval_or_train()["head"]
        log_probs = head(states.hidden_states[-1][:, 1:]).float().log_softmax(-1)
        rejected = self.reject_weight * (1 - accepted)
        losses = -(rejected * log_probs[..., 0] + accepted * log_probs[..., 1])
        weight = ((rejected + accepted) * counted).sum().clamp_min(1e-6)
        loss = (losses * counted).sum() / weight
        scores = {"accepted": masked_mean(accepted, counted)}
        if not self.training:
            chosen = counted > 0
            labels = torch.rand_like(accepted) < accepted
            self._thrown = log_probs[..., 1].exp()[chosen], labels[chosen].int()
        return lm_loss, loss, scores


class DraftModelTraining(DraftTraining):
    """A small language model that drafts for a large one, for the methods with two models.

    Args:
        draft: name of a registered causal LM, which starts from fresh weights.
        draft_args: its arguments.
        data_weight: of the cross-entropy with the text's own tokens.
        teacher_weight: of the cross-entropy with the target's distribution (distillation).
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(
        self,
        target: str,
        draft: str = "base_lm_draft",
        draft_args: dict[str, Any] | None = None,
        data_weight: float = 0.0,
        teacher_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.draft_name, self.draft_args = draft, draft_args or {}
        self.data_weight, self.teacher_weight = data_weight, teacher_weight
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """The draft model, with the target's vocabulary."""
        arguments = {"vocab_size": target.config.vocab_size} | self.draft_args
        return zoo.create_model(self.draft_name, **arguments)

    @override
    def score_names(self) -> Sequence[str]:
        return ("acceptance",)

    def method_options(self) -> dict[str, Any]:
        """The draft model."""
        return {"draft": self.eval_model["head"].eval()}

    def save_head(self, folder: Path) -> None:
        """Write the draft model for ``--draft``."""
        save_causal_lm(self.eval_model["head"], self.trainer.datamodule.tokenizer, folder)

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropies; how much probability both models share (the chance of acceptance)."""
        out, lm_loss = self.read(ids, mask)
        logits = self.eval_or_train()["head"](input_ids=ids, use_cache=False).logits
        loss = self.data_weight * next_token_loss(logits, ids, mask)
        distilled = masked_mean(soft_cross_entropy(logits, out.logits), mask)
        shared = torch.minimum(logits.softmax(-1), out.logits.softmax(-1)).sum(-1)
        scores = {"acceptance": masked_mean(shared, mask).detach()}
        return lm_loss, loss + self.teacher_weight * distilled, scores
