"""Samba-ASR: audio reaches a decoder without attention; the cost grows with its length alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text import word_error_rate

import zoo
from zoo.data.base import DataModule
from zoo.decoding.speech.transcribe import greedy
from zoo.plots.proofs import Axes, Curve, Pictures
from zoo.plots.speech import Heard, spectrograms
from zoo.plots.style import rendered
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task
from zoo.tasks.speech.asr import SpeechRecognition


class Hearing(Trained):
    """The test of a recognition recipe, and its decoder alone, with and without the right audio.

    Measures, beside the test's scores, ``greedy_wer``: the decoder without beams and CTC;
    ``deaf_wer``: the same when it hears another recording of the batch; ``step_gap``: the largest
    difference of step-by-step from parallel logits, over the largest logit.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Decode the test once more."""
        assert isinstance(task, SpeechRecognition) and task.tokens is not None
        model: Any = task.eval_model
        heard: list[str] = []
        misheard: list[str] = []
        texts: list[str] = []
        pictures: list[Pictures] = []
        gap, size = 0.0, 0.0
        for batch in data.test_dataloader():
            memory, lengths = model.encoder(batch["features"], batch["lengths"])
            tokens = batch["tokens"][:, :-1]
            parallel = model.decoder(tokens, memory, lengths)
            cache = model.begin(memory, lengths)
            steps = torch.stack([model.step(token, cache) for token in tokens.T], 1)
            gap = max(gap, float((steps - parallel).abs().max()))
            size = max(size, float(parallel.abs().max()))
            for found, order in ((heard, 0), (misheard, 1)):
                cache = model.begin(memory.roll(order, 0), lengths.roll(order))
                tokens_found = greedy(model, cache, task.search.max_tokens)
                found += [task.tokens.decode(text) for text in tokens_found]
            if not pictures:
                features = batch["features"][0, : batch["lengths"][0]].numpy()
                title = (
                    f"said: {batch['texts'][0]}\nheard: {heard[0]}\n"
                    f"from another recording: {misheard[0]}"
                )
                drawn = rendered(spectrograms([Heard(features, (), title)], ""))
                pictures.append({"a test recording": drawn})
            texts += batch["texts"]
        return Measured(
            {
                "greedy_wer": float(word_error_rate(heard, texts)),
                "deaf_wer": float(word_error_rate(misheard, texts)),
                "step_gap": gap / size,
            },
            pictures=pictures,
        )


class Growth(Measurement):
    """Work and memory of a recogniser with random weights as recordings get longer.

    Measures ``parameters`` and, for the shortest and the longest recording: ``seconds_short``,
    ``seconds_long`` of CPU time (encode, read, decode two tokens for each second of sound), and
    ``bytes_short``, ``bytes_long`` that the decoder keeps at the end.

    Args:
        model_args: of ``samba_asr_tiny``.
        seconds: of sound, in rising order.
        repeats: of all but the longest, whose fastest counts.
    """

    def __init__(
        self,
        model_args: dict[str, Any],
        seconds: Sequence[float] = (5, 20, 75, 300),
        repeats: int = 3,
    ) -> None:
        self.model_args, self.seconds, self.repeats = model_args, list(seconds), repeats

    def measure(self, seed: int) -> Measured:
        """Run all lengths in this process."""
        torch.manual_seed(seed)
        model: Any = zoo.create_model("samba_asr_tiny", **self.model_args).eval()
        times, sizes = [], []
        for length in self.seconds:
            repeats = self.repeats if length < self.seconds[-1] else 1
            runs = [self._run(model, length) for _ in range(repeats)]
            times.append(min(seconds for seconds, _ in runs))
            sizes.append(float(runs[0][1]))
        work = Axes("Work", "seconds of sound", "CPU seconds", "xy")
        memory = Axes("Memory of the decoder", "seconds of sound", "KiB", "xy")
        return Measured(
            {
                "parameters": float(sum(p.numel() for p in model.parameters())),
                "seconds_short": times[0],
                "seconds_long": times[-1],
                "bytes_short": sizes[0],
                "bytes_long": sizes[-1],
            },
            [
                Curve(work, self.seconds, times),
                Curve(memory, self.seconds, [size / 1024 for size in sizes]),
            ],
        )

    @torch.inference_mode()
    def _run(self, model: Any, length: float) -> tuple[float, int]:
        features: Tensor = torch.randn(1, round(100 * length), model.n_mels)
        started = time.process_time()
        memory, lengths = model.encoder(features, torch.tensor([features.shape[1]]))
        cache = model.begin(memory, lengths)
        for _ in range(round(2 * length)):
            model.step(torch.full((1,), 5), cache)
        return time.process_time() - started, cache.nbytes
