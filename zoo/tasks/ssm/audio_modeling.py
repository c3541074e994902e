"""Models of raw audio: bits a sample, and sounds that one can listen to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.formats.quantised_sound import dequantise, zero_level
from zoo.data.formats.sound import RATE, SOUND_SUFFIXES, read_sound
from zoo.data.ssm.raw_audio import RawAudio
from zoo.decoding.sampling import Sampler
from zoo.errors import ZooError
from zoo.models.protocols import check_model
from zoo.models.ssm._protocol import AudioModel
from zoo.plots.sounds import Sound, sounds
from zoo.tasks._scores import Scores
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = "sashimi"


class AudioModeling(ModelTask):
    """From all samples of a sound so far to the next one; trained on cross-entropy.

    The model is a :class:`zoo.models.ssm._protocol.AudioModel`. Measures ``bits`` a sample. The
    test makes some sounds and draws them; prediction takes a sound file, measures it, and writes
    how it goes on, ``_continued.wav``.

    Args:
        args, kwargs: see :class:`ModelTask`.
        generate: sounds that the test makes.
        generate_seconds: their length, and that of a continuation.
        temperature, top_p: see :class:`zoo.decoding.sampling.Sampler`.
    """

    monitor = "val/bits"
    monitor_mode = "min"
    data_type, data_has, data_example = RawAudio, "raw audio", "zoo.data.RawAudio"
    input_suffixes = SOUND_SUFFIXES
    shown_limit = 2

    def __init__(
        self,
        *args: Any,
        generate: int = 2,
        generate_seconds: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.generate, self.generate_seconds = generate, generate_seconds
        self.temperature, self.top_p = temperature, top_p
        self.made: Tensor | None = None
        super().__init__(*args, **kwargs)

    @override
    def configure_models(self) -> None:
        super().configure_models()
        check_model(self.model, AudioModel, self.model_name, EXAMPLE)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Bits a sample."""
        return {"bits": MeanMetric()}

    def check_data(self, data: DataModule) -> None:
        """Levels and lengths must fit."""
        super().check_data(data)
        model: Any = self.model
        if model.vocab_size != 1 << data.bits:
            raise ZooError(
                f"data.init_args.bits is {data.bits}, but the model has {model.vocab_size} levels: "
                f"set model_args.vocab_size to {1 << data.bits}"
            )
        if data.length % model.multiple:
            raise ZooError(
                f"data.init_args.length is {data.length}, expected a multiple of {model.multiple}"
            )

    # steps

    def _loss(self, model: Any, tokens: Tensor) -> Tensor:
        """Cross-entropy in nats; before the first sample is silence."""
        before = F.pad(tokens[:, :-1], (1, 0), value=model.vocab_size // 2)
        return F.cross_entropy(model(before).flatten(0, 1).float(), tokens.flatten())

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of a batch."""
        return self._loss(self.model, batch["tokens"])

    def evaluate(self, batch: dict[str, Tensor], scores: Scores) -> None:
        """Measure one batch."""
        tokens = batch["tokens"]
        scores["bits"].update(self._loss(self.eval_model, tokens) / math.log(2), len(tokens))

    def examples(self, batch: dict[str, Tensor], outputs: None) -> Any:
        """Sounds of the test."""
        return iter(batch["tokens"].cpu())

    @torch.no_grad()
    def continued(self, prompt: Tensor, steps: int, seed: int | None = None) -> Tensor:
        """Draw sample after sample.

        Args:
            prompt: levels [B, P] to go on from; P may be 0.
            steps: samples to make.
            seed: of the draws.

        Returns:
            levels [B, steps].
        """
        model: Any = self.eval_model
        sampler = Sampler(self.temperature, top_p=self.top_p, seed=seed, device=prompt.device)
        state = model.begin(len(prompt))
        logits = model.step(prompt.new_full((len(prompt),), model.vocab_size // 2), state)
        for token in prompt.T:
            logits = model.step(token, state)
        found: list[Tensor] = []
        while len(found) < steps:
            found.append(sampler.draw(sampler.probs(logits)))
            if len(found) < steps:
                logits = model.step(found[-1], state)
        return torch.stack(found, 1)

    def finish_test(self) -> dict[str, Any]:
        """Make sounds."""
        empty = torch.zeros(self.generate, 0, dtype=torch.long, device=self.device)
        self.made = self.continued(empty, self._steps(), seed=0) if self.generate else None
        return {}

    def _steps(self) -> int:
        return max(1, round(self.generate_seconds * RATE))

    # pictures

    def figures(self) -> dict[str, Figure]:
        """Sounds of the test, and those that were made."""
        assert isinstance(self.data, RawAudio)
        made = [] if self.made is None else list(self.made.cpu())
        named = [("of the test", tokens) for tokens in self.shown]
        named += [("made", tokens) for tokens in made]
        shown = [Sound(self._sound(tokens, self.data).numpy(), name) for name, tokens in named]
        return {"sounds": sounds(shown, RATE, "Sounds of the test, and made sample by sample")}

    def _sound(self, tokens: Tensor, data: RawAudio) -> Tensor:
        return dequantise(tokens, data.quantization, data.bits)

    # files

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Bits of a sound, and how it goes on, as a WAV file."""
        assert isinstance(data, RawAudio)
        model: Any = self.eval_model
        tokens = data.to_tokens(read_sound(source)).to(self.device)
        rest = -len(tokens) % model.multiple
        padded = F.pad(tokens, (0, rest), value=zero_level(data.bits))
        before = F.pad(padded[None, :-1], (1, 0), value=zero_level(data.bits))
        logits = model(before)[0, : len(tokens)]
        bits = float(F.cross_entropy(logits.float(), tokens)) / math.log(2)
        more = self.continued(tokens[None], self._steps(), seed=0)[0]
        sound = self._sound(torch.cat([tokens, more]).cpu(), data)
        path = stem.with_name(f"{stem.name}_continued.wav")
        soundfile.write(path, sound.numpy(), RATE)
        columns = {"bits": round(bits, 4), "sound": path.name}
        return columns, sounds([Sound(sound.numpy(), source.name, len(tokens))], RATE, source.name)
