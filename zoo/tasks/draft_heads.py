"""Training of draft heads beside a language model that is frozen, or trained along with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

import zoo
from zoo.data import DataModule
from zoo.decoding.heads import save_head
from zoo.errors import ZooError
from zoo.models.decoding.hydra import HydraHeads
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.decoding.specdec_pp import AcceptanceHead
from zoo.models.language.base_lm import export_causal_lm, load_causal_lm, trained_folder
from zoo.plots.decoding import head_accuracy
from zoo.tasks.base import Task
from zoo.tasks.decoding_test import DecodingTest
from zoo.tasks.language_modeling import check_vocabulary, masked_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class DraftHeadTraining(Task):
    """What the trainings of all draft heads share.

    Args:
        target: the language model: a folder, a hub name, or the name of a model trained here; with
            ``train_target`` the name of a registered model, which starts from fresh weights.
        target_args: arguments of a registered model.
        train_target: train the language model as well, on next-token cross-entropy.
        head_weight: weight of the heads' loss beside the language model's.
        export: name under which the heads (and a trained language model, in ``target``) are kept,
            or a folder; None: they are in the checkpoint alone.
        decoding_test: decode with these heads after the test.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    input_suffixes = frozenset()

    def __init__(
        self,
        target: str,
        target_args: dict[str, Any] | None = None,
        train_target: bool = False,
        head_weight: float = 1.0,
        export: str | None = None,
        decoding_test: DecodingTest | None = None,
        **kwargs: Any,
    ) -> None:
        self.decoding_test = decoding_test
        self.target_name, self.target_args = target, target_args or {}
        self.train_target, self.head_weight, self.export = train_target, head_weight, export
        self._frozen: dict[str, nn.Module] = {}  # not a module: it stays out of checkpoints
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Load or build the language models, then the head."""
        self.model = nn.ModuleDict()
        self._add_language_model("target", self.target_name, self.target_args)
        self.model["head"] = self.build_head(self.language_model("target"))

    def _add_language_model(self, role: str, name: str, arguments: dict[str, Any]) -> None:
        if self.train_target:
            self.model[role] = zoo.create_model(name, **arguments)
        else:
            self._frozen[role] = load_causal_lm(name).requires_grad_(False)

    def language_model(self, role: str) -> nn.Module:
        """The target, or the draft model of tasks that have one."""
        model = self._frozen.get(role)
        return self.eval_or_train()[role] if model is None else model.to(self.device)

    def eval_or_train(self) -> nn.Module:
        """The trained parts as this phase uses them."""
        # while the task is being built there is nothing to judge yet
        return self.model if self.training or not hasattr(self, "ema") else self.eval_model

    @abstractmethod
    def build_head(self, target: nn.Module) -> nn.Module:
        """The head, with what it takes over from the target."""

    @abstractmethod
    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Of a batch: the language models' loss (0 if frozen), the head's, and scores."""

    @abstractmethod
    def method_options(self) -> dict[str, Any]:
        """What the decoding method needs of the trained parts."""

    def save_head(self, folder: Path) -> None:
        """Write the head for ``--heads``."""
        save_head(self.eval_model["head"], folder)

    def configure_losses(self) -> None:
        """They follow from the kind of head."""

    def configure_metrics(self) -> None:
        """Means of everything that is measured, made when they are first needed."""
        self._means = nn.ModuleDict()
        self._table: dict[str, float] = {}
        self._texts: list[Tensor] = []
        self._figures: dict[str, Figure] = {}

    def check_data(self, data: DataModule) -> None:
        """The data must be text that the target can read."""
        key = "model.init_args.target_args.vocab_size" if self.train_target else "target"
        check_vocabulary(data, self.language_model("target"), key)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the heads, and of the language models where they are trained."""
        lm_loss, head_loss, _ = self.losses(*batch)
        return self.log_loss(lm_loss + self.head_weight * head_loss, len(batch[0]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch."""
        self._measure(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch."""
        self._measure(batch)
        if self.decoding_test is not None and not self._texts:
            self._texts.append(batch[0])

    def _measure(self, batch: Batch) -> None:
        lm_loss, head_loss, scores = self.losses(*batch)
        if self.train_target:
            scores = scores | {"lm_loss": lm_loss}
        for name, value in (scores | {"loss": head_loss}).items():
            if name not in self._means:
                self._means[name] = MeanMetric().to(self.device)
            self._means[name].update(value, len(batch[0]))

    def _log_means(self, split: str) -> None:
        self._table = {name: float(metric.compute()) for name, metric in self._means.items()}
        self.log_dict({f"{split}/{name}": value for name, value in self._table.items()})
        for metric in self._means.values():
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Write the test's scores, decode, and export."""
        self._log_means("test")
        if self.decoding_test is not None:
            options = self.method_options()
            target = self.language_model("target").eval()
            scores, figure = self.decoding_test.measure(target, self._texts[0], **options)
            self.log_dict({f"test/{name}": value for name, value in scores.items()})
            self._figures["acceptance"] = figure
        if self.export is None or not self.trainer.is_global_zero:
            return
        folder = Path(self.export) if "/" in self.export else trained_folder(self.export)
        self.save_head(folder)
        if self.train_target:
            tokenizer = self.trainer.datamodule.tokenizer
            for role in set(self.eval_model) - {"head"}:
                export_causal_lm(self.eval_model[role], tokenizer, f"{folder}/{role}")

    def figures(self) -> dict[str, Figure]:
        """Accuracy of the heads by how far ahead they look, where they are several."""
        curves = {
            label: [value for name, value in sorted(self._table.items()) if name.startswith(start)]
            for start, label in (("acc_head", "the text's token"), ("agree_head", "the target's"))
        }
        curves = {label: values for label, values in curves.items() if values}
        if curves:
            self._figures["head_accuracy"] = head_accuracy(curves, "Best guess of each head")
        return self._figures

    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Heads are used by ``python -m zoo.generate``."""
        raise ZooError(
            "draft heads predict nothing on their own: use python -m zoo.generate --target ... "
            "--method ... with the exported heads"
        )

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
        """The target's outputs with all hidden states, and its loss (0 where it is frozen)."""
        target = self.language_model("target")
        with torch.set_grad_enabled(self.train_target and self.training):
            out = target(input_ids=ids, output_hidden_states=True, use_cache=False)
        if not self.train_target:
            return out, mask.new_zeros(())
        return out, next_token_loss(out.logits, ids, mask)


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the tokens that follow."""
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    return masked_mean(losses.view(len(ids), -1), mask[:, 1:])


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """``-sum_v p_teacher(v) log p(v)``, ``[..., V]`` -> ``[...]``; no gradient to the teacher."""
    return -(teacher.detach().float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1)


class TokenHeadTraining(DraftHeadTraining):
    """Medusa and Hydra heads: head i at position t learns token t + 2 + i.

    Args:
        head: ``medusa``, ``hydra`` or ``hydra++``.
        head_args: arguments of :class:`MedusaHeads` or :class:`HydraHeads`.
        data_weight: of the cross-entropy with the text's own tokens.
        teacher_weight: of the cross-entropy with the target's distribution.
        state_weight: of the smooth L1 distance of Hydra's states from the target's.
        kwargs: see :class:`DraftHeadTraining`.
    """

    def __init__(
        self,
        target: str,
        head: Literal["medusa", "hydra", "hydra++"] = "medusa",
        head_args: dict[str, Any] | None = None,
        data_weight: float = 1.0,
        teacher_weight: float = 0.0,
        state_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.head, self.head_args = head, head_args or {}
        self.data_weight, self.teacher_weight = data_weight, teacher_weight
        self.state_weight = state_weight
        if head == "medusa" and state_weight:
            raise ZooError("model.init_args.state_weight: Medusa's heads have no states to compare")
        super().__init__(target, **kwargs)

    def build_head(self, target: nn.Module) -> nn.Module:
        """Heads whose output layers start as the target's."""
        config, weight = target.config, target.get_output_embeddings().weight.data
        if self.head == "medusa":
            return MedusaHeads(
                config.hidden_size, config.vocab_size, lm_head=weight, **self.head_args
            )
        plus = {"arch": "prefix-mlp"} if self.head == "hydra++" else {}
        settings = HydraHeads.from_config(plus, config).config | self.head_args
        return HydraHeads(**settings, lm_head=weight)

    def method_options(self) -> dict[str, Any]:
        """The heads."""
        return {"heads": self.eval_model["head"].eval()}

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over the heads, each against the tokens that it should see."""
        out, lm_loss = self.read(ids, mask)
        hidden, heads = out.hidden_states[-1], self.eval_or_train()["head"]
        states: Tensor | None = None
        if self.head == "medusa":
            logits = heads(hidden)
        else:
            embeds = self.language_model("target").get_input_embeddings()(ids)
            logits, states = heads(hidden, embeds.detach())
        total, scores = hidden.new_zeros(()), {}
        for i, head_logits in enumerate(logits):
            end = ids.shape[1] - 2 - i
            mine, counted = head_logits[:, :end], mask[:, 2 + i :]
            truth, teacher = ids[:, 2 + i :], out.logits[:, 1 + i : -1]
            if self.data_weight:
                losses = F.cross_entropy(mine.transpose(1, 2).float(), truth, reduction="none")
                total = total + self.data_weight * masked_mean(losses, counted)
            if self.teacher_weight:
                losses = soft_cross_entropy(mine, teacher)
                total = total + self.teacher_weight * masked_mean(losses, counted)
            if self.state_weight and states is not None:
                goal = hidden[:, 1 + i : -1].detach()
                losses = F.smooth_l1_loss(states[i][:, :end], goal, reduction="none").mean(-1)
                total = total + self.state_weight * masked_mean(losses, counted)
            best = mine.argmax(-1)
            scores[f"acc_head{i}"] = masked_mean((best == truth).float(), counted)
            scores[f"agree_head{i}"] = masked_mean((best == teacher.argmax(-1)).float(), counted)
        return lm_loss, total, scores


class AdapterTraining(DraftHeadTraining):
    """Kangaroo's adapter: imitate the target's distribution from the states of an early layer.

    Args:
        exit_layer: number of shallow layers.
        kwargs: see :class:`DraftHeadTraining`.
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
        return KangarooAdapter.from_config({}, target.config)

    def method_options(self) -> dict[str, Any]:
        """The adapter and where it stands."""
        return {"adapter": self.eval_model["head"].eval(), "exit_layer": self.exit_layer}

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


class AcceptanceTraining(DraftHeadTraining):
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
        kwargs: see :class:`DraftHeadTraining`.
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

    def configure_metrics(self) -> None:
        """The area under the curve as well."""
        super().configure_metrics()
        self.auroc = BinaryAUROC(thresholds=200)

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
            # each proposal counts as accepted or rejected by a throw of its own probability
            labels = torch.rand_like(accepted) < accepted
            self.auroc.update(log_probs[..., 1].exp()[chosen], labels[chosen].int())
        return lm_loss, loss, scores

    def _log_means(self, split: str) -> None:
        super()._log_means(split)
        self.log(f"{split}/auc", self.auroc.compute(), prog_bar=True)
        self.auroc.reset()


class DraftModelTraining(DraftHeadTraining):
    """A small language model that drafts for a large one, for the methods with two models.

    Args:
        draft: name of a registered causal LM, which starts from fresh weights.
        draft_args: its arguments.
        data_weight: of the cross-entropy with the text's own tokens.
        teacher_weight: of the cross-entropy with the target's distribution (distillation).
        kwargs: see :class:`DraftHeadTraining`.
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

    def method_options(self) -> dict[str, Any]:
        """The draft model."""
        return {"draft": self.eval_model["head"].eval()}

    def save_head(self, folder: Path) -> None:
        """Write the draft model for ``--draft``."""
        export_causal_lm(self.eval_model["head"], self.trainer.datamodule.tokenizer, str(folder))

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropies; how much probability both models share (the chance of acceptance)."""
        out, lm_loss = self.read(ids, mask)
        logits = self.eval_or_train()["head"](input_ids=ids, use_cache=False).logits
        loss = self.data_weight * next_token_loss(logits, ids, mask)
        distilled = masked_mean(soft_cross_entropy(logits, out.logits), mask)
        shared = torch.minimum(logits.softmax(-1), out.logits.softmax(-1)).sum(-1)
        scores = {"acceptance": masked_mean(shared, mask).detach()}
        return lm_loss, loss + self.teacher_weight * distilled, scores
