"""Causal language modeling: next-token cross-entropy, and an export that others can load."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.checkpoints.exports import trained_folder
from zoo.data.base import DataModule
from zoo.data.formats.files import reading
from zoo.data.language.text import TextDataModule
from zoo.errors import ZooError
from zoo.metrics.vector_mean import VectorMean
from zoo.models.language._causal_lm import export_causal_lm, load_causal_lm
from zoo.plots.decoding import loss_by_position
from zoo.tasks._scores import Scores
from zoo.tasks.base import MODEL, Task
from zoo.tasks.decoding._decoding_test import DecodingTest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LanguageModeling(Task):
    """Predict the next token.

    Args:
        model: name of a registered causal LM; or to go on with, the name of an exported one, a
            folder, or a hub name.
        model_args: arguments of a registered model; its vocabulary follows the data.
        export: name under which the trained model is kept for ``--target`` and for other recipes,
            or a folder; None: not kept beside its checkpoints.
        decoding_test: decode with a method after the test.
        lora: settings of peft's ``LoraConfig``, such as ``{r: 8, lora_alpha: 16, target_modules:
            [q_proj, k_proj, v_proj, o_proj]}``: adapters alone learn, and are merged before the
            model is exported.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has, data_example = TextDataModule, "tokens", "zoo.data.PythonSource"
    input_suffixes = frozenset({".txt", ".py", ".md"})

    def __init__(
        self,
        model: str = "base_lm_small",
        model_args: dict[str, Any] | None = None,
        export: str | None = None,
        decoding_test: DecodingTest | None = None,
        lora: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args, self.export = model, model_args or {}, export
        self.decoding_test, self.lora = decoding_test, lora
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build or load the language model."""
        with blaming(MODEL):
            self.model = build_causal_lm(self.model_name, self.model_args)
        if self.lora is not None:
            self.model = with_adapters(self.model, self.lora)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss (nats per token) and top-1 accuracy; in the test the loss at each position."""
        metrics: dict[str, Metric] = {"loss": MeanMetric(), "acc1": MeanMetric()}
        return metrics | ({"by_position": VectorMean()} if split == "test" else {})

    def check_data(self, data: DataModule) -> None:
        """The vocabulary must be large enough."""
        super().check_data(data)
        apart = "seq_idx" in inspect.signature(self.model.forward).parameters
        check_vocabulary(data, self.model, "model.init_args.model_args.vocab_size", apart)

    def training_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the next tokens, where the data's mask says so."""
        return masked_mean(*self._losses(*batch)[:2])

    def _losses(
        self, ids: Tensor, mask: Tensor, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses ``[B, T - 1]``, their mask, and whether the best guess is right."""
        documents = {} if seq_idx is None else {"seq_idx": seq_idx}
        logits = self._current()(input_ids=ids, use_cache=False, **documents).logits[:, :-1]
        targets = ids[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view_as(targets), mask[:, 1:], logits.argmax(-1) == targets

    def _current(self) -> nn.Module:
        return self.model if self.training else self.eval_model

    def evaluate(self, batch: tuple[Tensor, ...], scores: Scores) -> None:
        """Measure one batch."""
        losses, mask, right = self._losses(*batch)
        if mask.sum() > 0:
            scores["loss"].update(masked_mean(losses, mask), mask.sum())
            scores["acc1"].update(masked_mean(right.float(), mask), mask.sum())
        if "by_position" in scores:
            scores["by_position"].update(losses)

    @override
    def keep_examples(self, batch: tuple[Tensor, ...], outputs: Any) -> None:
        if self.decoding_test is not None and not self.shown:
            self.shown.append(batch[0])

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """The perplexity as well."""
        values = super().summarize(results)
        if "loss" in values:
            values["perplexity"] = values["loss"].exp()
        return values

    def finish_test(self) -> dict[str, Any]:
        """Decode, and export the model."""
        scores: dict[str, Any] = {}
        self._figures: dict[str, Figure] = {}
        if self.decoding_test is not None:
            scores, figure = self.decoding_test.measure(self.eval_model, self.shown[0])
            self._figures["acceptance"] = figure
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.merged(), self.trainer.datamodule.tokenizer, self.export)
        return scores

    def merged(self) -> nn.Module:
        """The evaluated model, its adapters merged into its own weights where it has any."""
        if self.lora is None:
            return self.eval_model
        return copy.deepcopy(self.eval_model).merge_and_unload()  # type: ignore[operator]

    def figures(self) -> dict[str, Figure]:
        """How the loss falls along the text, and where drafts were accepted."""
        losses = self.results["by_position"].cpu()
        return {"loss_by_position": loss_by_position(losses), **self._figures}

    def begin_prediction(self, data: DataModule) -> None:
        """Get the tokenizer, which may have to be trained first."""
        super().begin_prediction(data)
        data.setup("test")
        if data.tokenizer is None:
            raise ZooError(f"{type(data).__name__} has no tokenizer for text files")

    def predict_one(self, source: Path, data: Any, stem: Path) -> tuple[dict[str, Any], Figure]:
        """Loss and perplexity of a text file."""
        with reading(source, "a text file"):
            text = source.read_text()
        ids = data.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] < 2:
            raise ZooError(
                f"{source}: {ids.shape[1]} tokens, expected a text of 2 or more: the first has "
                "nothing before it to predict it from"
            )
        ids = ids[:, : data.length].to(self.device)
        losses, _, right = self._losses(ids, torch.ones_like(ids, dtype=torch.float))
        loss = losses.mean()
        columns = {
            "tokens": ids.shape[1],
            "loss": round(float(loss), 4),
            "perplexity": round(float(loss.exp()), 3),
            "acc1": round(float(right.float().mean()), 4),
        }
        return columns, loss_by_position(losses[0].cpu())


def build_causal_lm(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A registered causal LM with fresh weights, or one that is loaded."""
    exported = name not in zoo.list_models() and trained_folder(name).is_dir()
    if Path(name).exists() or "/" in name or exported:
        return load_causal_lm(name, **arguments)
    return zoo.create_model(name, **arguments)


def with_adapters(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A model whose low-rank adapters alone learn (LoRA, arXiv 2106.09685), by peft.

    Raises:
        ZooError: peft is not installed, or a setting is wrong.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ZooError("model.init_args.lora needs peft: pip install peft") from error
    try:
        return get_peft_model(model, LoraConfig(**settings))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ZooError(f"model.init_args.lora: {error}") from error


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is 1."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def check_vocabulary(data: Any, model: nn.Module, key: str, apart: bool = False) -> None:
    """The model must know all tokens of a text data module.

    Args:
        data: text.
        model: the causal LM.
        key: of the recipe that sets its vocabulary.
        apart: whether documents that share a sample can be kept apart.
    """
    if data.separate and not apart:
        raise ZooError(
            f"data.init_args.separate: {type(model).__name__} cannot keep documents apart here, "
            "expected a model such as mamba_130m in language modeling: set it to false"
        )
    known = model.config.vocab_size
    if data.vocab_size > known:
        raise ZooError(
            f"{key}: the model knows {known} tokens, the data have {data.vocab_size}: set it to "
            f"{data.vocab_size} or more"
        )
