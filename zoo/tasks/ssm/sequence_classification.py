"""Classification of long sequences: tokens, pixels, sound; one sequence or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.data.formats.sound import SOUND_SUFFIXES
from zoo.data.ssm.sequences import SequenceDataModule
from zoo.errors import ZooError
from zoo.models.protocols import check_model
from zoo.models.ssm._protocol import SequenceClassifier, StreamingClassifier
from zoo.plots import confusion_matrix, prediction_grid
from zoo.plots.sequences import classified_sequence
from zoo.tasks._scores import Scores
from zoo.tasks.base import MODEL, ModelTask, check_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A model that fulfils all protocols.
EXAMPLE = "lmuformer"
PREDICT_TOP = 5


class SequenceClassification(ModelTask):
    """One class per sequence, or per pair of sequences.

    The model is a :class:`zoo.models.ssm._protocol.SequenceClassifier`.

    Args:
        model: name of a model, ``python -m zoo.list`` shows them.
        num_classes: number of classes; the data must have as many.
        loss: cross-entropy, or binary cross-entropy of each class, summed up as a mean.
        label_smoothing: share of the target that is spread over all classes.
        stream: prediction feeds a model that can stream step by step, and says when it was sure.
        args, kwargs: see :class:`ModelTask`.
    """

    monitor = "val/acc"
    monitor_mode = "max"
    data_type, data_has = SequenceDataModule, "labelled sequences"
    data_example = "zoo.data.ListOps"
    input_suffixes = PICTURE_SUFFIXES | SOUND_SUFFIXES | {".txt", ".tsv"}
    shown_limit = 24

    def __init__(
        self,
        model: str,
        num_classes: int,
        *args: Any,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        stream: bool = False,
        **kwargs: Any,
    ) -> None:
        check_several(num_classes)
        self.num_classes = num_classes
        self.loss, self.label_smoothing, self.stream = loss, label_smoothing, stream
        super().__init__(model, *args, **kwargs)

    @override
    def configure_models(self) -> None:
        with blaming(MODEL):
            self.model = zoo.create_model(
                self.model_name, num_classes=self.num_classes, **self.model_args
            )
        self.load_start(self.model, self.pretrained)
        protocol = StreamingClassifier if self.stream else SequenceClassifier
        check_model(self.model, protocol, self.model_name, EXAMPLE)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss and accuracy; in the test the confusion matrix as well."""
        metrics = {
            "loss": MeanMetric(),
            "acc": MulticlassAccuracy(self.num_classes, average="micro"),
        }
        if split == "test":
            metrics["confusion"] = MulticlassConfusionMatrix(self.num_classes)
        return metrics

    def check_data(self, data: DataModule) -> None:
        """The model must take the data's steps, and as many sequences."""
        super().check_data(data)
        model: Any = self.model
        for name in ("d_input", "vocab_size", "paired"):
            built, given = getattr(model, name), getattr(data, name)
            few = name == "vocab_size" and built is not None and built >= (given or built + 1)
            if built != given and not few:
                raise ZooError(
                    f"the data have {name} {given}, but the model {self.model_name} was built with "
                    f"{name} {built}: set model.init_args.model_args.{name} to {given}"
                )

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Sequences -> logits [B, classes] of the evaluated model."""
        return self.eval_model(inputs, lengths)

    @override
    def exported(self) -> tuple[nn.Module, Callable[..., Any]]:
        """The whole pass, of a model that listens as well."""
        return self.eval_model, self._stream if self.stream else self.eval_model.forward

    # steps

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a batch."""
        return self._loss(self.model(batch["inputs"], batch["lengths"]), batch["labels"])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        shares = labels
        if not labels.is_floating_point():
            shares = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
        shares = shares + self.label_smoothing * (1 / logits.shape[-1] - shares)
        return F.binary_cross_entropy_with_logits(logits, shares)

    def evaluate(self, batch: dict[str, Tensor], scores: Scores) -> Tensor:
        """Measure one batch; returns the predicted classes [B]."""
        logits = self(batch["inputs"], batch["lengths"])
        predicted, labels = logits.argmax(1), batch["labels"]
        scores["loss"].update(self._loss(logits, labels), len(labels))
        scores["acc"].update(predicted, labels)
        if "confusion" in scores:
            scores["confusion"].update(predicted, labels)
        return predicted

    # pictures

    def examples(self, batch: dict[str, Tensor], outputs: Tensor) -> Iterator[tuple[Any, str, str]]:
        """Sequences as pictures, with true and predicted class."""
        assert isinstance(self.data, SequenceDataModule)
        inputs, lengths = batch["inputs"], batch["lengths"]
        if self.paired:
            inputs, lengths = inputs[:, 0], lengths[:, 0]
        for i, (truth, guess) in enumerate(
            zip(batch["labels"].tolist(), outputs.tolist(), strict=True)
        ):
            picture = self.data.to_picture(inputs[i, : lengths[i]])
            yield picture, self.class_name(truth), self.class_name(guess)

    @property
    def paired(self) -> bool:
        """Whether a sample is two sequences."""
        return bool(self.model.paired)

    def figures(self) -> dict[str, Figure]:
        """Confusion matrix, and test sequences."""
        counts = self.results["confusion"].cpu().numpy()
        names = [self.class_name(i) for i in range(self.num_classes)]
        wrong = int(counts.sum() - counts.trace())
        title = f"Test sequences: {wrong:,} of {int(counts.sum()):,} wrong"
        return {
            "confusion_matrix": confusion_matrix(counts, names),
            "predictions": prediction_grid(self.shown, title),
        }

    # files

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Classify a file; its sequence with the most likely classes, and when they became so."""
        assert isinstance(data, SequenceDataModule)
        sequence = data.read_file(source)
        batch = data.collate([{"inputs": sequence, "label": 0}])
        inputs, lengths = batch["inputs"].to(self.device), batch["lengths"].to(self.device)
        course = self._stream(inputs) if self.stream else self(inputs, lengths)
        scores = course.float().softmax(-1).cpu()  # [steps, classes]
        best = scores[-1].topk(min(PREDICT_TOP, len(scores[-1])))
        top = [(self.class_name(i), p) for p, i in zip(*map(Tensor.tolist, best), strict=True)]
        columns: dict[str, Any] = {
            "prediction": top[0][0],
            "probability": round(top[0][1], 6),
            "steps": int(lengths.flatten()[0]),
        }
        lines = None
        if self.stream:
            chosen = best.indices[0]
            others = (scores.argmax(-1) != chosen).nonzero()
            columns["decided_at_step"] = int(others[-1]) + 2 if len(others) else 1
            lines = {name: scores[:, i].numpy() for (name, _), i in zip(top, best[1], strict=True)}
        first = sequence[0] if isinstance(sequence, tuple) else sequence
        return columns, classified_sequence(data.to_picture(first), top, lines)

    def _stream(self, inputs: Tensor) -> Tensor:
        """Logits [L, classes] after each step."""
        model: Any = self.eval_model
        stream = model.stream()
        steps = inputs.split(1, dim=1)
        found = [stream.feed(step, last=step is steps[-1]) for step in steps]
        return torch.cat(found, dim=1)[0]
