"""From attention to Mamba-2 in stages: layer by layer with teacher forcing, then end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

import zoo
from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.data.language.text import TextDataModule
from zoo.data.multimodal.visual_chat import VisualChat
from zoo.errors import ZooError
from zoo.losses.distillation import attention_layers, logit_kl, masked_mse, tap
from zoo.metrics.vector_mean import VectorMean
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.multimodal._mmmamba_attention import Mamba2Attention
from zoo.models.multimodal._mmmamba_config import DecoderConfig
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder
from zoo.models.multimodal.mmmamba import find_decoder, load_decoder, read_config, seed_student
from zoo.plots.chat import conversations
from zoo.plots.distillation import error_by_layer
from zoo.tasks._freezing import train_only
from zoo.tasks._scores import Scores
from zoo.tasks.base import MODEL, Task
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
        question: that is asked about a user's picture.
        export: name under which the student is kept, or a folder.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type = (VisualChat, TextDataModule)
    data_has, data_example = "conversations or text", "zoo.data.VisualChat"
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
            with blaming(MODEL):
                self.model = zoo.create_model(self.model_name, **self.model_args)
        patterns = self.trainable or TRAINABLE[self.stage]
        train_only(self.model, patterns, required=self.trainable is not None)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss; in stage 3 also accuracy of the answers, the teacher's, and their agreement."""
        if self.stage < 3:
            return {"loss": MeanMetric(), "layers": VectorMean()}
        return {name: MeanMetric() for name in ("loss", "acc", "teacher_acc", "agreement")}

    def check_data(self, data: DataModule) -> None:
        """The data must fit the student."""
        super().check_data(data)
        if isinstance(data, TextDataModule):
            check_vocabulary(data, self.model, "model.init_args.model_args.vocab_size")
        else:
            check_chat(data, self.model)

    # teacher and start

    @property
    def has_unused_parameters(self) -> bool:
        """As for visual questions; and a stage's losses do not reach all that it trains."""
        return True

    @property
    def teacher(self) -> nn.Module:
        """The teacher, frozen, loaded when it is first needed."""
        if not self._teacher:
            with torch.inference_mode(False):  # a test may ask first, and a training after it
                self._teacher.append(load_decoder(self.teacher_source).requires_grad_(False))
        return self._teacher[0].to(self.device).eval()

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit" or not self.starts_fresh:
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

    @override
    def count_samples(self, batch: Any) -> int:
        return len(as_dictionary(batch)["input_ids"])

    def training_loss(self, batch: Any) -> Tensor:
        """Error of the layers, or KL divergence of the logits."""
        batch = as_dictionary(batch)
        if self.stage == 3:
            return self._end_to_end(batch)[0]
        return self.mse_factor * torch.stack(self._layerwise(batch)).mean()

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

    def evaluate(self, batch: Any, scores: Scores) -> None:
        """Measure one batch."""
        batch = as_dictionary(batch)
        count = batch["present"].sum()
        if self.stage < 3:
            errors = torch.stack(self._layerwise(batch))
            scores["layers"].update(errors[None])
            scores["loss"].update(self.mse_factor * errors.mean(), count)
            return
        loss, logits, wanted = self._end_to_end(batch)
        scores["loss"].update(loss, count)
        for name, given in (("acc", logits), ("teacher_acc", wanted)):
            right, counted = right_answers(given, batch, self.data)
            scores[name].update((right * counted).sum() / counted.sum(), counted.sum())
        same = (logits.argmax(-1) == wanted.argmax(-1)).float()
        scores["agreement"].update((same * batch["present"]).sum() / count, count)

    def finish_test(self) -> dict[str, Any]:
        """Ask, measure the cost of decoding, and export the student."""
        scores: dict[str, Any] = {}
        self._figures: dict[str, Figure] = {}
        if self.stage < 3:
            self._figures["error_by_layer"] = error_by_layer(
                self.results["layers"].reshape(-1).tolist()  # of one layer it is a number
            )
        elif isinstance(self.data, VisualChat):
            shown = ask_test_questions(self.eval_model, self.data)
            self._figures["answers"] = conversations(shown, "Answers of the student")
        if self.length_test is not None:
            models = {"teacher": self.teacher, "student": self.eval_model}
            scores, self._figures["cost_by_length"] = self.length_test.measure(models)
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, None, self.export)
        return scores

    def figures(self) -> dict[str, Figure]:
        """Errors of the layers, or answers; the cost of decoding if it was measured."""
        return self._figures

    def begin_prediction(self, data: DataModule) -> None:
        """Pictures must fit the student."""
        if not isinstance(data, VisualChat):
            raise ZooError(f"{type(data).__name__} does not say how a picture becomes an input")
        check_chat(data, self.model)

    def predict_one(self, source: Path, data: Any, stem: Path) -> tuple[dict[str, Any], Figure]:
        """Ask the student the question about a picture."""
        return ask_about(self.eval_model, source, data, self.question)


def as_dictionary(batch: Any) -> Batch:
    """Batches of text alone (ids and mask) by name too."""
    if isinstance(batch, dict):
        return batch
    ids, mask = batch
    return {"input_ids": ids, "mask": mask, "present": torch.ones_like(mask)}
