"""From attention to Mamba-2 in stages: layer by layer with teacher forcing, then end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.data.language.text import TextDataModule
from zoo.data.multimodal.visual_chat import VisualChat
from zoo.errors import ZooError
from zoo.losses.distillation import attention_layers, logit_kl, masked_mse, tap
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.multimodal._mmmamba_attention import Mamba2Attention
from zoo.models.multimodal._mmmamba_config import DecoderConfig
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder
from zoo.models.multimodal.mmmamba import find_decoder, load_decoder, read_config, seed_student
from zoo.plots.chat import conversations
from zoo.plots.distillation import error_by_layer
from zoo.tasks._freezing import train_only
from zoo.tasks.base import Task, build_model
from zoo.tasks.language.language_modeling import check_vocabulary
from zoo.tasks.multimodal._length_test import LengthTest
from zoo.tasks.multimodal.visual_chat import (
    Batch,
    ask_about,
    ask_test_questions,
    check_chat,
    inputs_of,
    right_answers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEW = [f"*.attention.{name}" for name in ("in_proj.*", "conv1d.*", "g_proj.*", "g_norm.*")]
INHERITED = [f"*.attention.{name}_proj.*" for name in "qkv"]
RATES = ["*.attention.dt_bias", "*.attention.A_log_bias"]
#: What learns in each stage; as in the authors' code, step sizes and rates rest in the third.
TRAINABLE = {1: NEW + RATES, 2: NEW + RATES + INHERITED, 3: NEW + INHERITED}


class Distillation(Task):
    """Turn a decoder's attention layers into Mamba-2 (mmMamba, arXiv 2502.13145, section 3.3).

    In stages 1 and 2 each Mamba-2 layer learns to give what the teacher's attention gives for the
    same input, before the output projection, while the teacher's own output flows on. In stage 3
    the student runs by itself and learns the teacher's distribution of the next token.

    Args:
        teacher: a decoder that a recipe exported, a folder, or a hub name; any causal LM of
            transformers that is built like Llama, or HoVLE.
        stage: 1: what is new in the Mamba-2 layers; 2: queries, keys and values too; 3: the logits.
        model: name of the student; None: built with the teacher's sizes.
        model_args: what differs from it; for a student of the teacher's sizes,
            ``attention_layers`` is empty unless it is given here.
        start: student of the stage before: a run's folder, its checkpoint, or an exported model.
            Layers that are attention here and not there come from the teacher. None: Mamba-2 is
            seeded from the teacher's attention.
        inherit_qkv: the seed has queries, keys and values.
        trainable: patterns of the parameters that learn, in place of the stage's own.
        mse_factor: of the loss of stages 1 and 2.
        temperature: of both distributions in stage 3.
        length_test: measure the cost of decoding after the test.
        question: that :meth:`predict_files` asks about a picture.
        export: name under which the student is kept, or a folder.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    input_suffixes = PICTURE_SUFFIXES

    def __init__(
        self,
        teacher: str,
        stage: Literal[1, 2, 3],
        model: str | None = None,
        model_args: dict[str, Any] | None = None,
        start: str | None = None,
        inherit_qkv: bool = True,
        trainable: list[str] | None = None,
        mse_factor: float = 1000.0,
        temperature: float = 1.0,
        length_test: LengthTest | None = None,
        question: str = "What is in the picture?",
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.teacher_source, self.stage, self.start = teacher, stage, start
        self.model_name, self.model_args = model, model_args or {}
        self.inherit_qkv, self.trainable = inherit_qkv, trainable
        self.mse_factor, self.temperature = mse_factor, temperature
        self.length_test, self.question, self.export = length_test, question, export
        self._teacher: list[nn.Module] = []  # not a module: it stays out of checkpoints
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the student; its weights come when training begins."""
        if self.model_name is None:
            config = DecoderConfig.from_dict(read_config(self.teacher_source))
            with blaming("model.init_args.model_args"):
                self.model = MultimodalDecoder(
                    replace(config, **{"attention_layers": [], **self.model_args})
                )
        else:
            self.model = build_model(self.model_name, self.model_args)
        patterns = self.trainable or TRAINABLE[self.stage]
        train_only(self.model, patterns, required=self.trainable is not None)

    def configure_losses(self) -> None:
        """Errors before the output projections, or KL divergence of the logits."""

    def configure_metrics(self) -> None:
        """Loss; in stage 3 also accuracy of the answers, the teacher's, and their agreement."""
        self.eval_loss, self.eval_accuracy = MeanMetric(), MeanMetric()
        self.teacher_accuracy, self.agreement = MeanMetric(), MeanMetric()
        self._layer_errors: list[list[float]] = []
        self._figures: dict[str, Figure] = {}

    def check_data(self, data: DataModule) -> None:
        """The data must fit the student."""
        if isinstance(data, TextDataModule):
            check_vocabulary(data, self.model, "model.init_args.model_args.vocab_size")
        else:
            check_chat(data, self.model)

    # teacher and start

    @property
    def teacher(self) -> nn.Module:
        """The teacher, frozen, loaded when it is first needed."""
        if not self._teacher:
            self._teacher.append(load_decoder(self.teacher_source).requires_grad_(False))
        return self._teacher[0].to(self.device).eval()

    def setup(self, stage: str) -> None:
        """Seed the student, or take that of the stage before."""
        super().setup(stage)
        if stage != "fit":
            return
        seed_student(self.model, self.teacher, self.inherit_qkv)
        if self.start is not None:
            self._continue_from(self.start)

    @torch.no_grad()
    def _continue_from(self, start: str) -> None:
        """Take the Mamba-2 layers of a student all of whose layers are Mamba-2."""
        before = MultimodalDecoder(replace(self.model.config, attention_layers=[]))
        path = Path(start)
        zoo.load_pretrained(before, path if path.exists() else find_decoder(start))
        pairs = zip(self.model.decoder_layers, before.decoder_layers, strict=True)
        for layer, trained in pairs:
            if isinstance(layer.attention, Mamba2Attention):
                layer.attention.load_state_dict(trained.attention.state_dict())

    # steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        batch = as_dictionary(batch)
        if self.stage == 3:
            loss = self._end_to_end(batch)[0]
        else:
            loss = self.mse_factor * torch.stack(self._layerwise(batch)).mean()
        return self.log_loss(loss, len(batch["input_ids"]))

    def _layerwise(self, batch: Batch) -> list[Tensor]:
        """Error of each Mamba-2 layer, behind the teacher's own layers."""
        mixers = attention_layers(self.teacher)
        layers = self.model.decoder_layers  # type: ignore[operator]
        if len(mixers) != len(layers):
            raise ZooError(
                f"the teacher has {len(mixers)} attention layers and the student {len(layers)} "
                "layers: expected the same number"
            )
        with torch.no_grad(), tap(mixers) as tapped:
            self.teacher(**inputs_of(batch), use_cache=False)
        return [
            masked_mse(layer.attention.heads(x), y, batch["present"])
            for layer, x, y in zip(layers, tapped.inputs, tapped.outputs, strict=True)
            if isinstance(layer.attention, Mamba2Attention)
        ]

    def _end_to_end(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """KL divergence, and the logits of student and teacher."""
        with torch.no_grad():
            wanted = self.teacher(**inputs_of(batch), use_cache=False).logits
        model = self.model if self.training else self.eval_model
        logits = model(**inputs_of(batch)).logits
        return logit_kl(logits, wanted, batch["present"], self.temperature), logits, wanted

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(as_dictionary(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(as_dictionary(batch))

    def _evaluate(self, batch: Batch) -> None:
        count = batch["present"].sum()
        if self.stage < 3:
            errors = self._layerwise(batch)
            self._layer_errors.append([float(error) for error in errors])
            self.eval_loss.update(self.mse_factor * torch.stack(errors).mean(), count)
            return
        loss, logits, wanted = self._end_to_end(batch)
        self.eval_loss.update(loss, count)
        for metric, given in ((self.eval_accuracy, logits), (self.teacher_accuracy, wanted)):
            right, counted = right_answers(given, batch, self.data)
            metric.update((right * counted).sum() / counted.sum(), counted.sum())
        same = (logits.argmax(-1) == wanted.argmax(-1)).float()
        self.agreement.update((same * batch["present"]).sum() / count, count)

    def on_validation_epoch_start(self) -> None:
        """Begin to measure."""
        self._layer_errors = []

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log("val")

    def on_test_epoch_start(self) -> None:
        """Begin to measure."""
        self._layer_errors = []

    def on_test_epoch_end(self) -> None:
        """Write the test's scores, draw, and export the student."""
        self._log("test")
        if self._layer_errors:
            means = torch.tensor(self._layer_errors).mean(0).tolist()
            self._figures["error_by_layer"] = error_by_layer(means)
        if self.stage == 3 and isinstance(self.data, VisualChat):
            shown = ask_test_questions(self.eval_model, self.data)
            self._figures["answers"] = conversations(shown, "Answers of the student")
        if self.length_test is not None:
            models = {"teacher": self.teacher, "student": self.eval_model}
            scores, self._figures["cost_by_length"] = self.length_test.measure(models)
            self.log_dict({f"test/{name}": value for name, value in scores.items()})
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, None, self.export)

    def _log(self, split: str) -> None:
        scores = {"loss": self.eval_loss}
        if self.stage == 3:
            scores |= {
                "acc": self.eval_accuracy,
                "teacher_acc": self.teacher_accuracy,
                "agreement": self.agreement,
            }
        values = {f"{split}/{name}": metric.compute() for name, metric in scores.items()}
        self.log_dict(values, prog_bar=True)
        for metric in scores.values():
            metric.reset()

    def figures(self) -> dict[str, Figure]:
        """Errors of the layers, or answers; the cost of decoding if it was measured."""
        return self._figures

    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Ask the student a question about pictures."""
        return ask_about(self.eval(), self.eval_model, files, data, self.question, folder)


def as_dictionary(batch: Any) -> Batch:
    """Batches of text alone (ids and mask) by name too."""
    if isinstance(batch, dict):
        return batch
    ids, mask = batch
    return {"input_ids": ids, "mask": mask, "present": torch.ones_like(mask)}
