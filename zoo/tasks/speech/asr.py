"""Speech recognition: an encoder-decoder with a CTC head; error rates of words and characters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.text import CharErrorRate, WordErrorRate
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.sound import RATE, SOUND_SUFFIXES, read_sound
from zoo.data.formats.subtitles import write_subtitles
from zoo.data.formats.transcripts import PAD, Tokens
from zoo.data.speech.speech import SpeechDataModule
from zoo.decoding.speech.ctc import ctc_align, ctc_greedy
from zoo.decoding.speech.transcribe import Search, greedy, transcribe
from zoo.errors import ZooError
from zoo.models.protocols import check_model
from zoo.models.speech._protocol import Recogniser, StreamingRecogniser
from zoo.plots.speech import Heard, spectrograms
from zoo.tasks._scores import Scores
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A model that fulfils all protocols.
EXAMPLE = "samba_asr_tiny"
#: Seconds from one encoded frame to the next.
FRAME = 0.02


class SpeechRecognition(ModelTask):
    """Write down what is said.

    The model is a :class:`zoo.models.speech._protocol.Recogniser`. Validation decodes
    greedily, the test as ``search`` says; both measure ``wer`` and ``cer`` on plain text (lower
    case, no punctuation), the test also ``ctc_wer`` of the CTC head read out frame by frame, and
    ``rtf``, seconds of work for a second of sound.

    Args:
        args, kwargs: see :class:`ModelTask`.
        ctc_weight: share of the CTC loss; the rest is cross-entropy. 0 trains without CTC.
        label_smoothing: of the cross-entropy.
        search: how the test and prediction look for text; greedily by default.
        stream_seconds: prediction reads a file in pieces of so many seconds, which needs a causal
            encoder and features that do not depend on what follows (``data.init_args.peak``); 0:
            at once.
    """

    monitor = "val/wer"
    monitor_mode = "min"
    data_type, data_has, data_example = SpeechDataModule, "speech", "zoo.data.LibriSpeech"
    input_suffixes = SOUND_SUFFIXES
    shown_limit = 4

    def __init__(
        self,
        *args: Any,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        search: Search | None = None,
        stream_seconds: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.ctc_weight, self.label_smoothing = ctc_weight, label_smoothing
        self.search, self.stream_seconds = search or Search(), stream_seconds
        self.tokens: Tokens | None = None
        super().__init__(*args, **kwargs)

    @override
    def configure_models(self) -> None:
        super().configure_models()
        check_model(self.model, Recogniser, self.model_name, EXAMPLE)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Error rates; seconds of sound and of work."""
        metrics = {"loss": MeanMetric(), "wer": WordErrorRate(), "cer": CharErrorRate()}
        if split == "test":
            metrics |= {"ctc_wer": WordErrorRate(), "work": SumMetric(), "sound": SumMetric()}
        return metrics

    def check_data(self, data: DataModule) -> None:
        """The model must be able to take the features and the tokens."""
        super().check_data(data)
        if data.n_mels != self.model.n_mels:
            raise ZooError(
                f"data.init_args.n_mels is {data.n_mels}, the model's n_mels {self.model.n_mels}: "
                "set both to the same"
            )
        tokens = len(self.tokens or data.tokens)
        if tokens > self.model.vocab_size:
            raise ZooError(
                f"the model knows {self.model.vocab_size} tokens, the data have {tokens}: set "
                f"model_args.vocab_size to {tokens} or more"
            )

    def use_data(self, data: Any) -> None:
        """Take the data's tokens; a model that was trained has its own, which the data take."""
        self.tokens = data.tokens = self.tokens or data.tokens

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

    @override
    def count_samples(self, batch: dict[str, Any]) -> int:
        return len(batch["texts"])

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy, and CTC."""
        return self._loss(self.model, batch)

    def evaluate(
        self, batch: dict[str, Any], scores: Scores
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Update loss and error rates; returns tokens and CTC logits [T', V] of each recording."""
        testing = "ctc_wer" in scores
        search = self.search if testing else Search(max_tokens=self.search.max_tokens)
        scores["loss"].update(self._loss(self.eval_model, batch), len(batch["texts"]))
        started = time.perf_counter()
        texts, ctc = self._decode(batch["features"], batch["lengths"], search)
        seconds = time.perf_counter() - started
        written = [self._text(text) for text in texts]
        for name in ("wer", "cer"):
            scores[name].update(written, batch["texts"])
        if testing:
            scores["ctc_wer"].update([self._text(ctc_greedy(row)) for row in ctc], batch["texts"])
            scores["work"].update(seconds)
            scores["sound"].update(batch["lengths"].sum() * FRAME / 2)
        return texts, ctc

    def examples(
        self, batch: dict[str, Any], outputs: tuple[list[list[int]], list[Tensor]]
    ) -> Iterator[Heard]:
        """Recordings with what was recognised."""
        for i, (text, ctc) in enumerate(zip(*outputs, strict=True)):
            title, truth = self._text(text), batch["texts"][i]
            title += "" if title == truth else f"\n(true: {truth})"
            yield self._heard(batch["features"][i, : batch["lengths"][i]], text, ctc, title)

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """Work in relation to the sound."""
        values = super().summarize(results)
        if "sound" in values:
            values["rtf"] = values.pop("work") / values.pop("sound")
        return values

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

    @override
    def exported(self) -> tuple[nn.Module, Callable[..., Any]]:
        """The encoder with its CTC head, which is greedy decoding's."""
        model: Any = self.eval_model
        return CTCRecogniser(model.encoder, model.ctc), model.encoder.forward

    # checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.tokens is not None:  # learned word pieces stand nowhere else
            checkpoint["tokens"] = self.tokens.to_json()

    @override
    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
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
        if not self.shown:
            return {}
        return {"spectrograms": spectrograms(self.shown, "Test recordings and what was recognised")}

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

    def begin_prediction(self, data: Any) -> None:
        """The tokens must be known."""
        super().begin_prediction(data)
        self.use_data(data)

    def predict_one(self, source: Path, data: Any, stem: Path) -> tuple[dict[str, Any], Figure]:
        """Write down what is said in a sound file, also as subtitles; its spectrogram with the
        words."""
        started = time.perf_counter()
        sound = read_sound(source)
        features = data.features(sound).to(self.device)
        if self.stream_seconds > 0:
            text, ctc = self._decode_stream(features, data)
        else:
            lengths = torch.tensor([len(features)], device=self.device)
            (text,), (ctc,) = self._decode(features[None], lengths, self.search)
        seconds, worked = len(sound) / RATE, time.perf_counter() - started
        columns = {
            "transcript": self._text(text),
            "seconds": round(seconds, 2),
            "rtf": round(worked / seconds, 3),
        }
        heard = self._heard(features, text, ctc, self._text(text))
        Path(f"{stem}.txt").write_text(self._text(text) + "\n")
        # where CTC cannot tell when the words were said, the text stands there all the time
        untimed = [(self._text(text), 0.0, seconds)] if text else []
        write_subtitles(heard.words or untimed, stem)
        return columns, spectrograms([heard], source.name)

    def _decode_stream(self, features: Tensor, data: SpeechDataModule) -> tuple[list[int], Tensor]:
        if data.peak is None:
            raise ZooError(
                "stream_seconds needs features that do not depend on what follows: train with a "
                "fixed data.init_args.peak, such as 2"
            )
        model: Any = self.eval_model
        check_model(model, StreamingRecogniser, self.model_name, EXAMPLE)
        stream = model.stream()
        pieces = features.split(max(round(self.stream_seconds * 100), 1))
        ctc = [stream.feed(piece, last=piece is pieces[-1]) for piece in pieces]
        (text,) = greedy(model, stream.cache(), self.search.max_tokens)
        return text, torch.cat(ctc)


class CTCRecogniser(nn.Module):
    """An encoder and its CTC head as one network."""

    def __init__(self, encoder: nn.Module, ctc: nn.Module) -> None:
        super().__init__()
        self.encoder, self.ctc = encoder, ctc

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-Mel [B, T, n_mels] of ``lengths`` [B] to CTC logits [B, T', V] and their lengths."""
        memory, lengths = self.encoder(features, lengths)
        return self.ctc(memory), lengths
