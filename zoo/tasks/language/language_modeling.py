"""Causal language modeling: next-token cross-entropy, and an export that others can load."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.files import reading
from zoo.data.language.text import TextDataModule
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm, load_causal_lm
from zoo.plots.decoding import loss_by_position
from zoo.tasks.base import MODEL, Task
from zoo.tasks.decoding._decoding_test import DecodingTest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LanguageModeling(Task):
    """Predict the next token.

    Args:
        model: name of a registered causal LM, or the folder or hub name of one to go on with.
        model_args: arguments of a registered model; its vocabulary follows the data.
        export: name under which the trained model is kept for ``--target`` and for other recipes,
            or a folder; None: not kept beside its checkpoints.
        decoding_test: decode with a method after the test.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    input_suffixes = frozenset({".txt", ".py", ".md"})

    def __init__(
        self,
        model: str = "base_lm_small",
        model_args: dict[str, Any] | None = None,
        export: str | None = None,
        decoding_test: DecodingTest | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args, self.export = model, model_args or {}, export
        self.decoding_test = decoding_test
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build or load the language model."""
        with blaming(MODEL):
            self.model = build_causal_lm(self.model_name, self.model_args)

    def configure_losses(self) -> None:
        """Cross-entropy, where the data's mask says so."""

    def configure_metrics(self) -> None:
        """Loss (nats per token), top-1 accuracy, and the loss at each position."""
        self.eval_loss, self.eval_accuracy = MeanMetric(), MeanMetric()
        self._by_position: list[Tensor] = []
        self._texts: list[Tensor] = []
        self._figures: dict[str, Figure] = {}

    def check_data(self, data: DataModule) -> None:
        """The data must be text, and the vocabulary large enough."""
        apart = "seq_idx" in inspect.signature(self.model.forward).parameters
        check_vocabulary(data, self.model, "model.init_args.model_args.vocab_size", apart)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Cross-entropy of the next tokens."""
        return self.log_loss(masked_mean(*self._losses(*batch)[:2]), len(batch[0]))

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

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(batch)

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Measure one batch, by position too."""
        self._by_position.append(self._evaluate(batch).mean(0).cpu())
        if self.decoding_test is not None and not self._texts:
            self._texts.append(batch[0])

    def _evaluate(self, batch: tuple[Tensor, ...]) -> Tensor:
        losses, mask, right = self._losses(*batch)
        if mask.sum() > 0:
            self.eval_loss.update(masked_mean(losses, mask), mask.sum())
            self.eval_accuracy.update(masked_mean(right.float(), mask), mask.sum())
        return losses

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log("val")

    def on_test_epoch_start(self) -> None:
        """Forget an earlier test."""
        self._by_position, self._texts, self._figures = [], [], {}

    def on_test_epoch_end(self) -> None:
        """Write the test's scores, decode, and export the model."""
        self._log("test")
        if self.decoding_test is not None:
            scores, figure = self.decoding_test.measure(self.eval_model, self._texts[0])
            self.log_dict({f"test/{name}": value for name, value in scores.items()})
            self._figures["acceptance"] = figure
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, self.trainer.datamodule.tokenizer, self.export)

    def _log(self, split: str) -> None:
        loss = self.eval_loss.compute()
        scores = {"loss": loss, "perplexity": loss.exp(), "acc1": self.eval_accuracy.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.eval_loss.reset()
        self.eval_accuracy.reset()

    def figures(self) -> dict[str, Figure]:
        """How the loss falls along the text, and where drafts were accepted."""
        losses = torch.stack(self._by_position).mean(0)
        return {"loss_by_position": loss_by_position(losses), **self._figures}

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Loss and perplexity of text files."""
        if not isinstance(data, TextDataModule):
            raise ZooError(f"{type(data).__name__} has no tokenizer for text files")
        data.setup("test")
        if data.tokenizer is None:
            raise ZooError(f"{type(data).__name__} has no tokenizer for text files")
        self.eval()
        rows = []
        for path in files:
            with reading(path, "a text file"):
                text = path.read_text()
            ids = data.tokenizer(text, return_tensors="pt")["input_ids"]
            if ids.shape[1] < 2:
                raise ZooError(
                    f"{path}: {ids.shape[1]} tokens, expected a text of 2 or more: the first has "
                    "nothing before it to predict it from"
                )
            ids = ids[:, : data.length].to(self.device)
            losses, _, right = self._losses(ids, torch.ones_like(ids, dtype=torch.float))
            loss = float(losses.mean())
            loss_by_position(losses[0].cpu()).savefig(folder / f"{len(rows):04d}_{path.stem}.png")
            rows.append(
                {
                    "file": str(path),
                    "tokens": ids.shape[1],
                    "loss": round(loss, 4),
                    "perplexity": round(float(torch.tensor(loss).exp()), 3),
                    "acc1": round(float(right.float().mean()), 4),
                }
            )
        return rows


def build_causal_lm(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A registered causal LM with fresh weights, or one that is loaded."""
    if Path(name).exists() or "/" in name:
        return load_causal_lm(name, **arguments)
    return zoo.create_model(name, **arguments)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is 1."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def check_vocabulary(data: DataModule, model: nn.Module, key: str, apart: bool = False) -> None:
    """The data must be text, and the model must know all its tokens.

    Args:
        data: of the run.
        model: the causal LM.
        key: of the recipe that sets its vocabulary.
        apart: whether documents that share a sample can be kept apart.
    """
    if not isinstance(data, TextDataModule):
        raise ZooError(
            f"data.class_path: {type(data).__name__} has no tokens, expected a class such as "
            "zoo.data.language.text.PythonSource"
        )
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
