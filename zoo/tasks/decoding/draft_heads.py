"""Training of draft heads: Medusa's, Hydra's, Clover's and Kangaroo's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from zoo.arguments import blaming
from zoo.errors import ZooError
from zoo.models.decoding._hydra_attention import HydraAttentionHead, HydraCrossHead, HydraEagleHead
from zoo.models.decoding._one_layer import layer_settings
from zoo.models.decoding._protocol import output_rows
from zoo.models.decoding.clover import CloverHeads
from zoo.models.decoding.hydra import HydraHeads
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.language._split_decoder import states_before_norm
from zoo.tasks.decoding._draft_training import DraftTraining, soft_cross_entropy
from zoo.tasks.language.language_modeling import masked_mean


class TokenHeadTraining(DraftTraining):
    """Medusa, Hydra and Clover heads: head i at position t learns token t + 2 + i.

    Args:
        head: ``medusa``, ``hydra``, ``hydra++``, ``clover``, ``clover2``, or one of Hydra's
            ablations ``cross-attn`` and ``eagle-attn``, single heads that learn token t + 2 alone.
        head_args: arguments of their classes, :class:`MedusaHeads`, :class:`HydraHeads`,
            :class:`CloverHeads`, :class:`HydraCrossHead` and :class:`HydraEagleHead`.
        data_weight: of the cross-entropy with the text's own tokens.
        teacher_weight: of the cross-entropy with the target's distribution.
        state_weight: of the smooth L1 distance of Hydra's or Clover-2's states from the target's.
        decay: weight of a head relative to the one before it.
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(
        self,
        target: str,
        head: Literal[
            "medusa", "hydra", "hydra++", "clover", "clover2", "cross-attn", "eagle-attn"
        ] = "medusa",
        head_args: dict[str, Any] | None = None,
        data_weight: float = 1.0,
        teacher_weight: float = 0.0,
        state_weight: float = 0.0,
        decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.head, self.head_args, self.decay = head, head_args or {}, decay
        self.data_weight, self.teacher_weight = data_weight, teacher_weight
        self.state_weight = state_weight
        if head in ("medusa", "clover") and state_weight:
            raise ZooError(
                f"model.init_args.state_weight: heads of {head} have no states to compare"
            )
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """Heads whose output layers start as the target's, or that use the target's own."""
        with blaming("model.init_args.head_args"):
            return self._build_head(target)

    def _build_head(self, target: nn.Module) -> nn.Module:
        count = self.head_args.get("num_heads", 1)
        if count < 1:
            raise ZooError(f"num_heads is {count}, expected 1 or more")
        if self.head in ("cross-attn", "eagle-attn"):
            kind = HydraCrossHead if self.head == "cross-attn" else HydraEagleHead
            return kind(**(layer_settings(target) | self.head_args))
        if self.head in ("clover", "clover2"):
            version = {"version": 2 if self.head == "clover2" else 1}
            heads = CloverHeads(**(layer_settings(target) | version | self.head_args))
            heads.start_from(target)
            return heads
        width, size = target.config.hidden_size, target.config.vocab_size
        shape = {
            "d_model": width,
            "vocab_size": size,
            "lm_head": output_rows(target, size, width),
        }
        if self.head == "medusa":
            return MedusaHeads(**shape, **self.head_args)
        if self.head == "hydra++":
            shape |= {"arch": "prefix-mlp", "prefix": layer_settings(target)}
        return HydraHeads(**(shape | self.head_args))

    @override
    def score_names(self) -> Sequence[str]:
        count = getattr(self.model["head"], "num_heads", 1)
        return [f"{name}_head{i}" for i in range(count) for name in ("acc", "agree")]

    def method_options(self) -> dict[str, Any]:
        """The heads."""
        return {"heads": self.eval_model["head"].eval()}

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over the heads, each against the tokens that it should see."""
        target = self.language_model("target")
        raw = states_before_norm(target) if self.head == "clover2" else nullcontext([])
        with raw as before_norm:
            out, lm_loss = self.read(ids, mask)
        hidden, logits, states = self._read_heads(out, ids, before_norm)
        total, scores = hidden.new_zeros(()), {}
        for i, head_logits in enumerate(logits):
            end = ids.shape[1] - 2 - i
            mine, counted = head_logits[:, :end], mask[:, 2 + i :]
            truth, teacher = ids[:, 2 + i :], out.logits[:, 1 + i : -1]
            if self.data_weight:
                losses = F.cross_entropy(mine.transpose(1, 2).float(), truth, reduction="none")
                total = total + self.decay**i * self.data_weight * masked_mean(losses, counted)
            if self.teacher_weight:
                losses = soft_cross_entropy(mine, teacher)
                total = total + self.decay**i * self.teacher_weight * masked_mean(losses, counted)
            if self.state_weight and states is not None:
                goal = hidden[:, 1 + i : -1].detach()
                losses = F.smooth_l1_loss(states[i][:, :end], goal, reduction="none").mean(-1)
                total = total + self.decay**i * self.state_weight * masked_mean(losses, counted)
            best = mine.argmax(-1)
            scores[f"acc_head{i}"] = masked_mean((best == truth).float(), counted)
            scores[f"agree_head{i}"] = masked_mean((best == teacher.argmax(-1)).float(), counted)
        return lm_loss, total, scores

    def _read_heads(
        self, out: Any, ids: Tensor, before_norm: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The target's states, the heads' logits ``[K, B, T, V]``, and the heads' own states."""
        heads, target = self.eval_or_train()["head"], self.language_model("target")
        if isinstance(heads, CloverHeads):
            weight = target.get_output_embeddings().weight.detach()
            states = (before_norm or [out.hidden_states[-1]])[0]
            outs = heads(states, F.embedding(ids, weight).roll(-1, dims=1))
            said = torch.stack([heads.logits(i, each, weight) for i, each in enumerate(outs)])
            return out.hidden_states[-1], said, outs if heads.version == 2 else None
        if self.head == "medusa":
            return out.hidden_states[-1], heads(out.hidden_states[-1]), None
        hidden = out.hidden_states[-1 - heads.hidden_state_offset]
        embeds = target.get_input_embeddings()(ids).detach()
        if not isinstance(heads, HydraAttentionHead):
            return hidden, *heads(hidden, embeds)
        states = heads(embeds.roll(-1, dims=1), hidden).last_hidden_state[None]
        weight = target.get_output_embeddings().weight.detach()
        return hidden, F.linear(states, weight), states


class AdapterTraining(DraftTraining):
    """Kangaroo's adapter: imitate the target's distribution from the states of an early layer.

    Args:
        exit_layer: number of shallow layers.
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(self, target: str, exit_layer: int = 2, **kwargs: Any) -> None:
        self.exit_layer = exit_layer
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """An adapter of the target's shape."""
        if not 0 < self.exit_layer < target.config.num_hidden_layers:
            raise ZooError(
                f"model.init_args.exit_layer is {self.exit_layer}, but the target has "
                f"{target.config.num_hidden_layers} layers"
            )
        return KangarooAdapter.for_target(target, {"exit_layer": self.exit_layer})

    @override
    def score_names(self) -> Sequence[str]:
        return ("acceptance", "agree")

    def method_options(self) -> dict[str, Any]:
        """The adapter, which knows where it stands."""
        return {"adapter": self.eval_model["head"].eval()}

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy with the target's distribution; how much of it both share."""
        out, lm_loss = self.read(ids, mask)
        # the shallow layers learn from the language model's loss alone
        shallow = out.hidden_states[self.exit_layer].detach()
        states = self.eval_or_train()["head"](inputs_embeds=shallow).last_hidden_state
        weight = self.language_model("target").get_output_embeddings().weight.detach()
        logits = F.linear(states, weight)
        shared = torch.minimum(logits.softmax(-1), out.logits.softmax(-1)).sum(-1)
        agree = (logits.argmax(-1) == out.logits.argmax(-1)).float()
        scores = {
            "acceptance": masked_mean(shared, mask).detach(),
            "agree": masked_mean(agree, mask),
        }
        return lm_loss, masked_mean(soft_cross_entropy(logits, out.logits), mask), scores
