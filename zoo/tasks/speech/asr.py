"""Speech recognition: an encoder-decoder with a CTC head; error rates of words and characters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.text import CharErrorRate, WordErrorRate

from zoo.data.base import DataModule
from zoo.data.formats.sound import RATE, SOUND_SUFFIXES, read_sound
from zoo.data.formats.transcripts import PAD, Tokens
from zoo.data.speech.speech import SpeechDataModule
from zoo.decoding.speech.ctc import ctc_align, ctc_greedy
from zoo.decoding.speech.transcribe import Search, greedy, transcribe
from zoo.errors import ZooError
from zoo.models.speech._samba_asr_streaming import SambaStream
from zoo.plots.speech import Heard, spectrograms
from zoo.tasks.base import Task, build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
#: Seconds from one encoded frame to the next.
FRAME = 0.02


class SpeechRecognition(Task):
    """Write down what is said.

    The model is called as :class:`zoo.models.speech.samba_asr.SambaASR`. Validation decodes
    greedily, the test as ``search`` says; both measure ``wer`` and ``cer`` on plain text (lower
    case, no punctuation), the test also ``ctc_wer`` of the CTC head read out frame by frame, and
    ``rtf``, seconds of work for a second of sound.

    Args:
        model: name of a model.
        model_args: arguments of the model beyond its published ones.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        ctc_weight: share of the CTC loss; the rest is cross-entropy. 0 trains without CTC.
        label_smoothing: of the cross-entropy.
        search: how the test and prediction look for text; greedily by default.
        stream_seconds: prediction reads a file in pieces of so many seconds, which needs a causal
            encoder and features that do not depend on what follows (``data.init_args.peak``); 0:
            at once.
        kwargs: see :class:`Task`.
    """

    monitor = "val/wer"
    monitor_mode = "min"
    input_suffixes = SOUND_SUFFIXES

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        search: Search | None = None,
        stream_seconds: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained, self.ctc_weight = pretrained, ctc_weight
        self.label_smoothing = label_smoothing
        self.search, self.stream_seconds = search or Search(), stream_seconds
        self.tokens: Tokens | None = None
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, with the given weights."""
        self.model = build_model(self.model_name, self.model_args, self.pretrained)

    def configure_losses(self) -> None:
        """Cross-entropy and CTC of torch."""

    def configure_metrics(self) -> None:
        """Error rates."""
        self.eval_loss = MeanMetric()
        self.wer, self.cer, self.ctc_wer = WordErrorRate(), CharErrorRate(), WordErrorRate()
        self.work, self.sound = MeanMetric(), MeanMetric()
        self._shown: list[Heard] = []

    def check_data(self, data: DataModule) -> None:
        """The data must be speech, in features and tokens that the model can take."""
        if not isinstance(data, SpeechDataModule):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no speech, expected a class such as "
                "zoo.data.speech.speech.LibriSpeech"
            )
        if data.n_mels != self.model.n_mels:
            raise ZooError(
                f"data.init_args.n_mels is {data.n_mels}, the model's n_mels {self.model.n_mels}: "
                "set both to the same"
            )
        if self.tokens is None:
            self.tokens = data.tokens
        data.tokens = self.tokens
        if len(self.tokens) > self.model.vocab_size:
            raise ZooError(
                f"the model knows {self.model.vocab_size} tokens, the data have "
                f"{len(self.tokens)}: set model_args.vocab_size to {len(self.tokens)} or more"
            )

    # steps

    def _loss(self, model: Any, batch: dict[str, Any]) -> Tensor:
        tokens = batch["tokens"]
        logits, ctc, lengths = model(batch["features"], batch["lengths"], tokens[:, :-1])
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            tokens[:, 1:].flatten(),
            ignore_index=PAD,
            label_smoothing=self.label_smoothing,
        )
        if self.ctc_weight == 0:
            return loss
        ctc_loss = F.ctc_loss(
            ctc.float().log_softmax(-1).transpose(0, 1),
            tokens[:, 1:],
            lengths,
            batch["token_lengths"] - 2,  # without start and end
            zero_infinity=True,
        )
        return (1 - self.ctc_weight) * loss + self.ctc_weight * ctc_loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self.log_loss(self._loss(self.model, batch), len(batch["texts"]))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one batch, decoded greedily."""
        self._evaluate(batch, Search(max_tokens=self.search.max_tokens))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure one batch, and keep some recordings to show."""
        texts, ctc = self._evaluate(batch, self.search)
        heard = [self._text(ctc_greedy(row)) for row in ctc]
        self.ctc_wer.update(heard, batch["texts"])
        for i in range(min(len(texts), SHOWN - len(self._shown))):
            features = batch["features"][i, : batch["lengths"][i]]
            title, truth = self._text(texts[i]), batch["texts"][i]
            title += "" if title == truth else f"\n(true: {truth})"
            self._shown.append(self._heard(features, texts[i], ctc[i], title))

    def _evaluate(
        self, batch: dict[str, Any], search: Search
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Update loss and error rates; returns tokens and CTC logits [T', V] of each recording."""
        self.eval_loss.update(self._loss(self.eval_model, batch), len(batch["texts"]))
        started = time.perf_counter()
        texts, ctc = self._decode(batch["features"], batch["lengths"], search)
        self.work.update(time.perf_counter() - started)
        self.sound.update(batch["lengths"].sum() * FRAME / 2)
        written = [self._text(text) for text in texts]
        self.wer.update(written, batch["texts"])
        self.cer.update(written, batch["texts"])
        return texts, ctc

    def _decode(
        self, features: Tensor, lengths: Tensor, search: Search
    ) -> tuple[list[list[int]], list[Tensor]]:
        model: Any = self.eval_model
        memory, lengths = model.encoder(features, lengths)
        ctc = model.ctc(memory)
        weigh = ctc if self.ctc_weight > 0 else None
        texts = transcribe(model, memory, lengths, weigh, search)
        return texts, [row[:length] for row, length in zip(ctc, lengths.tolist(), strict=True)]

    def _text(self, tokens: Sequence[int]) -> str:
        assert self.tokens is not None
        return self.tokens.decode(tokens)

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self._log("val")

    def on_test_epoch_start(self) -> None:
        """Forget an earlier test."""
        self._shown = []

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self.log("test/ctc_wer", self.ctc_wer.compute())
        self.log("test/rtf", self.work.compute() / self.sound.compute())
        self.ctc_wer.reset()
        self._log("test")

    def _log(self, split: str) -> None:
        self.work.reset()
        self.sound.reset()
        for name, metric in (("loss", self.eval_loss), ("wer", self.wer), ("cer", self.cer)):
            self.log(f"{split}/{name}", metric.compute(), prog_bar=True)
            metric.reset()

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the tokens: learned word pieces stand nowhere else."""
        super().on_save_checkpoint(checkpoint)
        if self.tokens is not None:
            checkpoint["tokens"] = self.tokens.to_json()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the tokens."""
        if "tokens" in checkpoint:
            self.tokens = Tokens.from_json(checkpoint["tokens"])
            if isinstance(self.data if self._trainer else None, SpeechDataModule):
                self.data.tokens = self.tokens  # type: ignore[union-attr]

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Take weights and tokens."""
        super().load_weights(checkpoint)
        self.on_load_checkpoint(checkpoint)

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Some recordings of the test with the words where CTC finds them."""
        if not self._shown:
            return {}
        return {
            "spectrograms": spectrograms(self._shown, "Test recordings and what was recognised")
        }

    def _heard(self, features: Tensor, text: list[int], ctc: Tensor, title: str) -> Heard:
        spans = ctc_align(ctc.float().log_softmax(-1), text)
        words: list[list[Any]] = []
        for i, (start, end) in enumerate(spans):
            written = self._text(text[: i + 1]).split()
            if len(written) > len(words):
                words.append(["", start * FRAME, 0.0])
            if words:
                words[-1][0] = written[-1]
                words[-1][2] = max(words[-1][2], end * FRAME)
        return Heard(features.float().cpu().numpy(), [tuple(word) for word in words], title)

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Write down what is said in sound files; a picture of each spectrogram with the words."""
        if not isinstance(data, SpeechDataModule):
            raise ZooError(f"{type(data).__name__} does not say how sound becomes an input")
        self.tokens = self.tokens or data.tokens
        self.eval()
        rows = []
        for number, path in enumerate(files, start=1):
            started = time.perf_counter()
            sound = read_sound(path)
            features = data.features(sound).to(self.device)
            if self.stream_seconds > 0:
                text, ctc = self._decode_stream(features, data)
            else:
                lengths = torch.tensor([len(features)], device=self.device)
                (text,), (ctc,) = self._decode(features[None], lengths, self.search)
            seconds, worked = len(sound) / RATE, time.perf_counter() - started
            rows.append(
                {
                    "file": str(path),
                    "transcript": self._text(text),
                    "seconds": round(seconds, 2),
                    "rtf": round(worked / seconds, 3),
                }
            )
            heard = self._heard(features, text, ctc, self._text(text))
            spectrograms([heard], path.name).savefig(folder / f"{number:04d}_{path.stem}.png")
        return rows

    def _decode_stream(self, features: Tensor, data: SpeechDataModule) -> tuple[list[int], Tensor]:
        if data.peak is None:
            raise ZooError(
                "stream_seconds needs features that do not depend on what follows: train with a "
                "fixed data.init_args.peak, such as 2"
            )
        model: Any = self.eval_model
        stream = SambaStream(model)
        pieces = features.split(max(round(self.stream_seconds * 100), 1))
        ctc = [stream.feed(piece, last=piece is pieces[-1]) for piece in pieces]
        (text,) = greedy(model, stream.cache(), self.search.max_tokens)
        return text, torch.cat(ctc)
