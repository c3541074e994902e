"""Answering questions about pictures with one causal decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.multimodal.visual_chat import PLACE, VisualChat
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm
from zoo.plots.chat import Exchange, conversations
from zoo.tasks.base import Task, build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]
SHOWN = 8


class VisualQuestionAnswering(Task):
    """Learn to say what the assistant says in conversations about pictures.

    Args:
        model: name of a multimodal decoder.
        model_args: what differs from it.
        pretrained: weights to start from.
        question: that :meth:`predict_files` asks about a picture.
        export: name under which the trained model is kept for other recipes, or a folder.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    input_suffixes = PICTURE_SUFFIXES

    def __init__(
        self,
        model: str = "mmmamba_teacher",
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        question: str = "What is in the picture?",
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained, self.question, self.export = pretrained, question, export
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the decoder."""
        self.model = build_model(self.model_name, self.model_args, self.pretrained)

    def configure_losses(self) -> None:
        """Cross-entropy of what the assistant says."""

    def configure_metrics(self) -> None:
        """Loss (nats per token), and accuracy of the answers' tokens, ends of turns left out."""
        self.eval_loss, self.eval_accuracy = MeanMetric(), MeanMetric()
        self._shown: list[tuple[Any, list[Exchange]]] = []

    def check_data(self, data: DataModule) -> None:
        """Pictures, their tokens and the vocabulary must fit the model."""
        check_chat(data, self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        logits = self.model(**inputs_of(batch)).logits
        return self.log_loss(answer_loss(logits, batch), len(batch["input_ids"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        logits = self.eval_model(**inputs_of(batch)).logits
        self.eval_loss.update(answer_loss(logits, batch), batch["mask"].sum())
        right, counted = right_answers(logits, batch, self.data)
        self.eval_accuracy.update((right * counted).sum() / counted.sum(), counted.sum())

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Write the test's scores, ask its first questions, and export the model."""
        self._log("test")
        if isinstance(self.data, VisualChat):
            self._shown = ask_test_questions(self.eval_model, self.data)
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, None, self.export)

    def _log(self, split: str) -> None:
        scores = {"loss": self.eval_loss.compute(), "acc": self.eval_accuracy.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.eval_loss.reset()
        self.eval_accuracy.reset()

    def figures(self) -> dict[str, Figure]:
        """Some conversations of the test."""
        return {"answers": conversations(self._shown, "Answers of the test")} if self._shown else {}

    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Ask the question about pictures."""
        return ask_about(self.eval(), self.eval_model, files, data, self.question, folder)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What the model reads of a batch; models of text alone know no pixels."""
    names = ("input_ids", "pixel_values")
    return {name: batch[name] for name in names if name in batch and len(batch[name])}


def answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the tokens that count."""
    targets, mask = batch["input_ids"][:, 1:], batch["mask"][:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    return (losses.view_as(mask) * mask).sum() / mask.sum().clamp_min(1)


def right_answers(logits: Tensor, batch: Batch, data: DataModule | None) -> tuple[Tensor, Tensor]:
    """Whether each next token ``[B, L - 1]`` is guessed, and which of them count."""
    targets, counted = batch["input_ids"][:, 1:], batch["mask"][:, 1:]
    if isinstance(data, VisualChat):
        counted = counted * (targets != data.end_token)
    return (logits[:, :-1].argmax(-1) == targets).float(), counted


def ask_test_questions(model: nn.Module, data: VisualChat) -> list[tuple[Any, list[Exchange]]]:
    """Pictures of the first test samples, and answers to each of the questions about them."""
    rows = []
    for number in range(min(SHOWN, len(data.source("test")))):
        sample = data.source("test")[number]
        if len(sample["images"]) != 1:
            continue
        image = read_picture(sample["images"][0])
        texts = [text.replace(PLACE, "").strip() for _, text in sample["turns"]]
        exchanges = [
            (question, answer(model, data, image, question), truth)
            for question, truth in zip(texts[::2], texts[1::2], strict=False)
        ]
        rows.append((np.asarray(image), exchanges))
    return rows


def check_chat(data: DataModule, model: nn.Module) -> None:
    """Conversations about pictures must fit the model that reads them.

    Raises:
        ZooError: naming the setting to change.
    """
    if not isinstance(data, VisualChat):
        raise ZooError(
            f"data.class_path: {type(data).__name__} has no pictures with conversations, expected "
            "zoo.data.multimodal.visual_chat.VisualChat"
        )
    config: Any = model.config
    expected = {
        "image_size": (data.image_size, config.image_size),
        "image_tokens": (data.image_tokens, config.image_tokens),
        "img_context_token_id": (data.image_token, config.img_context_token_id),
    }
    for name, (given, wanted) in expected.items():
        if given != wanted:
            raise ZooError(f"{name}: the data have {given}, the model {wanted}: set them alike")
    if len(data.tokenizer) > config.vocab_size:
        raise ZooError(
            f"vocab_size: the model knows {config.vocab_size} tokens, the tokenizer "
            f"{len(data.tokenizer)}: set it to that or more"
        )


@torch.inference_mode()
def answer(
    model: nn.Module, data: VisualChat, image: Any, question: str, max_new_tokens: int = 64
) -> str:
    """What a decoder answers to a question about a picture, greedily, with its own cache."""
    device = next(model.parameters()).device
    sample = data.encode([("human", f"{PLACE}\n{question}"), ("gpt", "")], [image])
    pixels = sample["pixel_values"].to(device)
    out = model(input_ids=sample["input_ids"][None].to(device), pixel_values=pixels, use_cache=True)
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        token = out.logits[:, -1:].argmax(-1)
        if int(token) == data.end_token:
            break
        tokens.append(int(token))
        out = model(input_ids=token, cache=out.cache, use_cache=True)
    return data.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def ask_about(
    task: Task, model: nn.Module, files: Sequence[Path], data: DataModule, question: str,
    folder: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """Answers to one question about each picture file, with a picture of each."""
    check_chat(data, model)
    assert isinstance(data, VisualChat)
    model = model.to(task.device).eval()
    rows = []
    for path in files:
        image = read_picture(path)
        text = answer(model, data, image, question)
        figure = conversations([(np.asarray(image), [(question, text, None)])], path.name)
        figure.savefig(folder / f"{len(rows):04d}_{path.stem}.png")
        rows.append({"file": str(path), "question": question, "answer": text})
    return rows
