"""One class for each word of a text: named entities, keyphrases, parts of speech."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.language.tagged_text import IGNORED, TaggedText
from zoo.errors import ZooError
from zoo.metrics.spans import SpanScores, marks_spans, spans_of
from zoo.models.language._transformers import build_tagger
from zoo.tasks._scores import Scores
from zoo.tasks.language._encoder_task import EncoderTask
from zoo.tasks.language._text_inputs import TextInput, not_empty


class TokenClassification(EncoderTask):
    """A tag for each word, read off at the word's first piece.

    Measures ``acc`` of words and, where the tags mark spans (``B-PER``, ``I-PER``, ``O``),
    seqeval's ``precision``, ``recall`` and ``f1``. Words that were cut off, and those that the
    tokenizer drops, count as wrong and as outside of all spans.

    Args:
        model: a registered model, an architecture of transformers such as ``bert``, which starts
            fresh, or the folder or hub name of any model that ``AutoModelForTokenClassification``
            loads.
        num_classes: tags of the data.
        kwargs: see :class:`zoo.tasks.language._encoder_task.EncoderTask`: ``model_args``,
            ``pretrained``, ``lora``, ``export``, and what :class:`zoo.tasks.Task` takes.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has, data_example = TaggedText, "words with tags", "zoo.data.Conll2003"
    lora_type, build = "TOKEN_CLS", staticmethod(build_tagger)

    def __init__(self, model: str, num_classes: int, **kwargs: Any) -> None:
        if num_classes < 2:
            raise ZooError(
                f"model.init_args.num_classes is {num_classes}, expected the number of tags of the "
                "data, 2 or more"
            )
        super().__init__(model, num_classes, **kwargs)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss, accuracy of words, scores of spans."""
        return {"loss": MeanMetric(), "acc": MeanMetric(), "spans": SpanScores()}

    @override
    def count_samples(self, batch: dict[str, Any]) -> int:
        return len(batch["labels"])

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy, mean over the words of the batch."""
        return _loss(self.model(**_inputs(batch)).logits, batch["labels"])

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> None:
        """Measure one batch."""
        logits = self.eval_model(**_inputs(batch)).logits
        kept = int((batch["labels"] != IGNORED).sum())
        if kept:
            scores["loss"].update(_loss(logits, batch["labels"]), kept)
        lengths = [len(tags) for tags in batch["tags"]]
        predicted = _by_word(logits.argmax(-1), batch["words"], lengths)
        pairs = [
            guess == truth
            for guesses, truths in zip(predicted, batch["tags"], strict=True)
            for guess, truth in zip(guesses, truths, strict=True)
        ]
        scores["acc"].update(sum(pairs) / len(pairs), len(pairs))
        if self._marks_spans:
            scores["spans"].update(
                [self._names(tags) for tags in predicted],
                [self._names(tags) for tags in batch["tags"]],
            )

    @property
    def _marks_spans(self) -> bool:
        return self.class_names is not None and marks_spans(self.class_names)

    def _names(self, tags: list[int | None]) -> list[str]:
        return ["O" if tag is None else self.class_name(tag) for tag in tags]

    # files

    def predict_one(
        self, source: TextInput, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], None]:
        """The tags of a line's words, which spaces part, and the spans that they mark.

        ``entities`` is JSON: of each span its type, its text, and the places of its first
        character and behind its last.

        Raises:
            ZooError: the line is empty, or has more tokens than are read.
        """
        assert isinstance(data, TaggedText)
        text = not_empty(source)
        places = [(found.start(), found.end()) for found in re.finditer(r"\S+", text)]
        words = [text[start:end] for start, end in places]
        count = data.tokens_of(words)
        if count > data.length:
            raise ZooError(
                f"{source.place}: {count} tokens, more than the {data.length} that are read: "
                "shorten the text"
            )
        batch = {name: value.to(self.device) for name, value in data.encode([words]).items()}
        best = self.eval_model(**_inputs(batch)).logits.argmax(-1)
        tags = self._names(_by_word(best, batch["words"], [len(words)])[0])
        row: dict[str, Any] = {"prediction": " ".join(tags)}
        if self._marks_spans:
            entities = []
            for kind, first, last in spans_of(tags):
                start, end = places[first][0], places[last][1]
                span = {"type": kind, "text": text[start:end], "start": start, "end": end}
                entities.append(span)
            row["entities"] = json.dumps(entities, ensure_ascii=False)
        return row, None


def _inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {n: value for n, value in batch.items() if n not in ("labels", "words", "tags")}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over words; 0 of a batch without one. Logits ``[B, L, C]``, labels ``[B, L]``."""
    total = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


def _by_word(predicted: Tensor, words: Tensor, lengths: list[int]) -> list[list[int | None]]:
    """Classes of tokens ``[B, L]`` -> of each sentence those of its words; None: not read."""
    found: list[list[int | None]] = [[None] * length for length in lengths]
    for row, place in (words >= 0).nonzero().tolist():
        found[row][int(words[row, place])] = int(predicted[row, place])
    return found
