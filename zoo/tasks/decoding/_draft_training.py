"""Training of draft heads and draft models beside a language model, frozen or trained with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.checkpoints.exports import export
from zoo.data.base import DataModule
from zoo.data.language.text import TextDataModule
from zoo.decoding.heads import save_head
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_causal_lm, save_causal_lm
from zoo.plots.decoding import head_accuracy
from zoo.tasks._scores import Scores
from zoo.tasks.base import Task
from zoo.tasks.decoding._decoding_test import DecodingTest
from zoo.tasks.language.language_modeling import check_vocabulary, masked_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class DraftTraining(Task):
    """What the trainings of all draft heads and draft models share.

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
    data_type, data_has, data_example = TextDataModule, "tokens", "zoo.data.PythonSource"

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
            with blaming(f"model.init_args.{role}_args"):
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
        """Of a batch: the language models' loss (0 if frozen), the head's, and scores, means over
        tokens."""

    @abstractmethod
    def score_names(self) -> Sequence[str]:
        """Names of the scores of :meth:`losses`."""

    @abstractmethod
    def method_options(self) -> dict[str, Any]:
        """What the decoding method needs of the trained parts."""

    def save_head(self, folder: Path) -> None:
        """Write the head for ``--heads``."""
        save_head(self.eval_model["head"], folder)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Losses and scores, means over tokens."""
        losses = ("loss", "lm_loss") if self.train_target else ("loss",)
        return {name: MeanMetric() for name in (*losses, *self.score_names())}

    def check_data(self, data: DataModule) -> None:
        """The target must be able to read the text."""
        super().check_data(data)
        key = "model.init_args.target_args.vocab_size" if self.train_target else "target"
        check_vocabulary(data, self.language_model("target"), key)

    def training_loss(self, batch: Batch) -> Tensor:
        """Loss of the heads, and of the language models where they are trained."""
        lm_loss, head_loss, _ = self.losses(*batch)
        return lm_loss + self.head_weight * head_loss

    def evaluate(self, batch: Batch, scores: Scores) -> None:
        """Measure one batch."""
        lm_loss, head_loss, values = self.losses(*batch)
        if self.train_target:
            values = values | {"lm_loss": lm_loss}
        for name, value in (values | {"loss": head_loss}).items():
            scores[name].update(value, batch[1].sum())

    @override
    def keep_examples(self, batch: Batch, outputs: Any) -> None:
        if self.decoding_test is not None and not self.shown:
            self.shown.append(batch[0])

    def finish_test(self) -> dict[str, Any]:
        """Decode, and export."""
        scores: dict[str, Any] = {}
        self._figures: dict[str, Figure] = {}
        if self.decoding_test is not None:
            options = self.method_options()
            target = self.language_model("target").eval()
            scores, figure = self.decoding_test.measure(target, self.shown[0], **options)
            self._figures["acceptance"] = figure
        if self.export is not None and self.trainer.is_global_zero:
            export(self.export, self._save)
        return scores

    def _save(self, folder: Path) -> None:
        self.save_head(folder)
        if self.train_target:
            tokenizer = self.trainer.datamodule.tokenizer
            for role in set(self.eval_model) - {"head"}:
                save_causal_lm(self.eval_model[role], tokenizer, folder / role)

    def figures(self) -> dict[str, Figure]:
        """Accuracy of the heads by how far ahead they look, where they are several."""
        table = {name: float(value) for name, value in sorted(self.results.items())}
        curves = {
            label: [value for name, value in table.items() if name.startswith(start)]
            for start, label in (("acc_head", "the text's token"), ("agree_head", "the target's"))
        }
        curves = {label: values for label, values in curves.items() if values}
        if curves:
            self._figures["head_accuracy"] = head_accuracy(curves, "Best guess of each head")
        return self._figures

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Any]:
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
