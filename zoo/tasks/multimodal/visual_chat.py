"""Answering questions about pictures with one causal decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES, read_picture
from zoo.data.multimodal.visual_chat import PLACE, VisualChat
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm
from zoo.plots.chat import Exchange, conversations
from zoo.tasks._scores import Scores
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]
#: Test samples that are asked about.
SHOWN = 8


class VisualQuestionAnswering(ModelTask):
    """Learn to say what the assistant says in conversations about pictures.

    Args:
        model: name of a multimodal decoder.
        question: that is asked about a user's picture.
        export: name under which the trained model is kept for other recipes, or a folder.
        args, kwargs: see :class:`zoo.tasks.ModelTask`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has = VisualChat, "pictures with conversations"
    data_example = "zoo.data.VisualChat"
    input_suffixes = PICTURE_SUFFIXES

    def __init__(
        self,
        model: str = "mmmamba_teacher",
        *args: Any,
        question: str = "What is in the picture?",
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.question, self.export = question, export
        super().__init__(model, *args, **kwargs)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss (nats per token), and accuracy of the answers' tokens, ends of turns left out."""
        return {"loss": MeanMetric(), "acc": MeanMetric()}

    def check_data(self, data: DataModule) -> None:
        """Pictures, their tokens and the vocabulary must fit the model."""
        super().check_data(data)
        check_chat(data, self.model)

    @property
    def has_unused_parameters(self) -> bool:
        """Some stand in the decoder for the sake of published files alone."""
        return True

    @override
    def count_samples(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def training_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of one batch."""
        return answer_loss(self.model(**inputs_of(batch)).logits, batch)

    def evaluate(self, batch: Batch, scores: Scores) -> None:
        """Measure one batch."""
        logits = self.eval_model(**inputs_of(batch)).logits
        scores["loss"].update(answer_loss(logits, batch), batch["mask"][:, 1:].sum())
        right, counted = right_answers(logits, batch, self.data)
        scores["acc"].update((right * counted).sum() / counted.sum(), counted.sum())

    def finish_test(self) -> dict[str, Any]:
        """Ask the first questions of the test, and export the model."""
        self.shown = ask_test_questions(self.eval_model, self.data)
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, None, self.export)
        return {}

    def figures(self) -> dict[str, Figure]:
        """Some conversations of the test."""
        return {"answers": conversations(self.shown, "Answers of the test")} if self.shown else {}

    def begin_prediction(self, data: DataModule) -> None:
        """Pictures must fit the model."""
        super().begin_prediction(data)
        check_chat(data, self.model)

    def predict_one(self, source: Path, data: Any, stem: Path) -> tuple[dict[str, Any], Figure]:
        """Ask the question about a picture."""
        return ask_about(self.eval_model, source, data, self.question)


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


def check_chat(data: Any, model: nn.Module) -> None:
    """Conversations about pictures must fit the model that reads them.

    Args:
        data: a :class:`VisualChat`.
        model: a multimodal decoder.

    Raises:
        ZooError: naming the setting to change.
    """
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
    model: nn.Module, source: Path, data: VisualChat, question: str
) -> tuple[dict[str, Any], Figure]:
    """The answer to a question about a picture file, as a row and a picture."""
    image = read_picture(source)
    text = answer(model, data, image, question)
    figure = conversations([(np.asarray(image), [(question, text, None)])], source.name)
    return {"question": question, "answer": text}, figure
