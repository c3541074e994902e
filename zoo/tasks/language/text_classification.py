"""One class, or one number, for a text or a pair of texts; with a teacher where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.language.labelled_text import LabelledText
from zoo.errors import ZooError
from zoo.losses.distillation import (
    annealed_temperature,
    divergence,
    sinkhorn_distance,
    soft_cross_entropy,
)
from zoo.models.language._transformers import (
    LoraSettings,
    build_classifier,
    load_classifier,
)
from zoo.plots import confusion_matrix
from zoo.tasks._scores import Scores
from zoo.tasks.language._encoder_task import EncoderTask, check_sizes
from zoo.tasks.language._teacher import Teacher
from zoo.tasks.language._text_inputs import TextInput, not_empty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["kd", "kd_anneal", "kl", "reverse_kl", "js", "tvd"]


@dataclass
class ClassDistillation:
    """How a student learns from a teacher's logits (SinKD, arXiv 2402.17110).

    The loss is ``(1 - alpha) CE + alpha KD + sinkhorn SD``, with SD of
    :func:`zoo.losses.distillation.sinkhorn_distance`. Where labels are numbers, CE is the mean
    squared error, and KD that of the outputs divided by the temperature.

    Args:
        kind: of KD: ``kd`` is the cross-entropy with the teacher's distribution; ``kd_anneal`` the
            same with a temperature that falls to 1 over the epochs; others see
            :func:`zoo.losses.distillation.divergence`.
        alpha: share of KD.
        temperature: of KD.
        sinkhorn: weight of SD; 0: without. The authors' is 0.8 times 0.001.
        sinkhorn_temperature, eps, iterations, reduction: see
            :func:`zoo.losses.distillation.sinkhorn_distance`.
        cache: folder where the teacher's logits are kept, so that it reads each text once; null:
            nowhere.
    """

    kind: Kind = "kd"
    alpha: float = 0.9
    temperature: float = 1.0
    sinkhorn: float = 0.0008
    sinkhorn_temperature: float = 2.0
    eps: float = 0.1
    iterations: int = 20
    reduction: Literal["sum", "mean"] = "sum"
    cache: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value:g}, expected {expected}"
            for name, value, fine, expected in (
                ("alpha", self.alpha, 0 <= self.alpha <= 1, "0 to 1"),
                ("temperature", self.temperature, self.temperature > 0, "more than 0"),
                ("eps", self.eps, self.eps > 0, "more than 0"),
                ("iterations", self.iterations, self.iterations >= 1, "1 or more"),
            )
            if not fine
        ]
        if wrong:
            raise ZooError(f"model.init_args.distillation.{wrong[0]}")

    def loss(
        self, student: Tensor, teacher: Tensor, supervised: Tensor, temperature: float
    ) -> Tensor:
        """The whole loss.

        Args:
            student, teacher: logits ``[B, C]``; of one number C is 1.
            supervised: the loss of the labels.
            temperature: of KD in this epoch.
        """
        if student.shape[1] == 1:
            soft = F.mse_loss(student.float() / temperature, teacher.float() / temperature)
        elif self.kind in ("kd", "kd_anneal"):
            soft = soft_cross_entropy(student, teacher, temperature)
        else:
            soft = divergence(student, teacher, self.kind, temperature)
        loss = (1 - self.alpha) * supervised + self.alpha * soft
        if self.sinkhorn:
            form = (self.sinkhorn_temperature, self.eps, self.iterations, self.reduction)
            loss = loss + self.sinkhorn * sinkhorn_distance(student, teacher, *form)
        return loss


class TextClassification(EncoderTask):
    """One class a text, or a pair of texts; one number where the data's labels are numbers.

    Measures ``acc``, ``f1`` (of the second of two classes, else the mean over classes), Matthews'
    ``mcc`` and, of a student, ``agreement`` with its teacher; of numbers ``pearson`` and
    ``spearman``.

    Args:
        model: a registered classifier such as ``sinkd_bert_student``, or the folder or hub name of
            any model that ``AutoModelForSequenceClassification`` loads.
        num_classes: of the data; 1 where labels are numbers.
        model_args: of the model's configuration.
        pretrained: weights of a registered model to start from.
        lora: train adapters and the head alone.
        teacher: a classifier that a recipe exported, a folder, or a hub name, to learn from; of any
            architecture with the student's tokens and classes.
        distillation: how to learn from it.
        export: name under which the trained model is kept for other recipes, or a folder; its
            layout is that of transformers, without anything of the teacher.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has, data_example = LabelledText, "texts with labels", "zoo.data.Glue"
    lora_type, build = "SEQ_CLS", staticmethod(build_classifier)

    def __init__(
        self,
        model: str,
        num_classes: int,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        lora: LoraSettings | None = None,
        teacher: str | None = None,
        distillation: ClassDistillation | None = None,
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes < 1:
            raise ZooError(
                f"model.init_args.num_classes is {num_classes}, expected the number of classes of "
                "the data, or 1 where labels are numbers"
            )
        self.distillation = distillation or ClassDistillation()
        if distillation is not None and teacher is None:
            raise ZooError(
                "model.init_args.distillation says how to learn from a teacher: name it by "
                "model.init_args.teacher"
            )
        self.teacher_source = teacher
        if teacher is not None:
            cache = None if self.distillation.cache is None else Path(self.distillation.cache)
            self.teacher = Teacher(lambda: load_classifier(teacher), cache)
        super().__init__(
            model,
            num_classes,
            model_args=model_args,
            pretrained=pretrained,
            lora=lora,
            export=export,
            **kwargs,
        )

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Scores of GLUE; in the test the confusion matrix too."""
        classes = self.num_classes
        if classes == 1:
            return {
                "loss": MeanMetric(),
                "pearson": PearsonCorrCoef(),
                "spearman": SpearmanCorrCoef(),
            }
        f1 = BinaryF1Score() if classes == 2 else MulticlassF1Score(classes, average="macro")
        metrics: dict[str, Metric] = {
            "loss": MeanMetric(),
            "acc": MulticlassAccuracy(classes, average="micro"),
            "f1": f1,
            "mcc": MulticlassMatthewsCorrCoef(classes),
        }
        if split == "test":
            metrics["confusion"] = MulticlassConfusionMatrix(classes)
            if self.teacher_source is not None:
                metrics["agreement"] = MeanMetric()
        return metrics

    # steps

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.teacher_source is not None:
            if self.distillation.kind == "kd_anneal" and (self.trainer.max_epochs or 0) < 1:
                raise ZooError(
                    "model.init_args.distillation.kind is kd_anneal, whose temperature falls over "
                    "the epochs: set trainer.max_epochs"
                )
            config = self.teacher.model.config
            if config.num_labels != self.num_classes:
                raise ZooError(
                    f"model.init_args.teacher: '{self.teacher_source}' has {config.num_labels} "
                    f"classes, the student {self.num_classes}: expected a teacher of the same "
                    "classes"
                )
            if self.data is not None:
                check_sizes(self.data, config, "the teacher")

    @override
    def count_samples(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"])

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of the labels, and of the teacher's logits."""
        inputs = _inputs(batch)
        logits = self.model(**inputs).logits
        supervised = self._supervised(logits, batch["labels"])
        if self.teacher_source is None:
            return supervised
        temperature = self.distillation.temperature
        if self.distillation.kind == "kd_anneal":
            epochs = self.trainer.max_epochs
            assert epochs is not None  # see setup
            temperature = annealed_temperature(temperature, self.current_epoch, epochs)
        wanted = self.teacher.logits(inputs)
        return self.distillation.loss(logits, wanted, supervised, temperature)

    def _supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.num_classes == 1:
            return F.mse_loss(logits[:, 0].float(), labels)
        return F.cross_entropy(logits.float(), labels)

    @override
    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.teacher_source is not None and self.trainer.is_global_zero:
            self.teacher.keep()

    def evaluate(self, batch: dict[str, Tensor], scores: Scores) -> None:
        """Measure one batch; the loss is that of the labels."""
        labels, inputs = batch["labels"], _inputs(batch)
        logits = self.eval_model(**inputs).logits.float()
        scores["loss"].update(self._supervised(logits, labels), len(labels))
        if self.num_classes == 1:
            for name in ("pearson", "spearman"):
                scores[name].update(logits[:, 0], labels)
            return
        predicted = logits.argmax(1)
        for name in ("acc", "f1", "mcc", "confusion"):
            if name in scores:
                scores[name].update(predicted, labels)
        if "agreement" in scores:
            same = predicted == self.teacher.logits(inputs).argmax(1)
            scores["agreement"].update(same.float().mean(), len(labels))

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """As floats: torchmetrics' coefficient of Matthews is a whole number where it is 1."""
        return {name: value.float() for name, value in super().summarize(results).items()}

    def figures(self) -> dict[str, Figure]:
        """Confusion matrix."""
        if "confusion" not in self.results:
            return {}
        counts = self.results["confusion"].cpu().numpy()
        names = [self.class_name(i) for i in range(len(counts))]
        return {"confusion_matrix": confusion_matrix(counts, names)}

    # files

    def predict_one(
        self, source: TextInput, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], None]:
        """The likeliest class of a line, or the number.

        Raises:
            ZooError: the line is empty, has another number of texts, or more tokens than are read.
        """
        assert isinstance(data, LabelledText)
        text = not_empty(source)
        texts = tuple(text.split("\t")) if len(data.text_columns) == 2 else (text,)
        if len(texts) != len(data.text_columns) or not all(text.strip() for text in texts):
            raise ZooError(
                f"{source.place}: {len(texts)} texts, expected two with a tab between them"
            )
        count = data.tokens_of(texts)
        if count > data.length:
            raise ZooError(
                f"{source.place}: {count} tokens, more than the {data.length} that are read: "
                "shorten the text"
            )
        batch = {name: value.to(self.device) for name, value in data.encode([texts]).items()}
        logits = self.eval_model(**batch).logits[0].float()
        if self.num_classes == 1:
            return {"prediction": round(float(logits[0]), 4)}, None
        best = logits.softmax(-1).max(-1)
        name = self.class_name(int(best.indices))
        return {"prediction": name, "probability": round(float(best.values), 6)}, None


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
