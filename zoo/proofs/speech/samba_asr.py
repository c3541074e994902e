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
from zoo.proofs.base import Measurement
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task


class Hearing(Trained):
    """The test of a recognition recipe, and its decoder alone, with and without the right audio.

    Measures, beside the test's scores, ``greedy_wer``: the decoder without beams and CTC;
    ``deaf_wer``: the same when it hears another recording of the batch; ``step_gap``: the largest
    difference of step-by-step from parallel logits, over the largest logit.
    """

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> dict[str, float]:
        """Decode the test once more."""
        model: Any = task.eval_model
        heard: list[str] = []
        misheard: list[str] = []
        texts: list[str] = []
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
                tokens_found = greedy(model, cache, task.search.max_tokens)  # type: ignore[attr-defined]
                found += [task.tokens.decode(text) for text in tokens_found]  # type: ignore[attr-defined]
            texts += batch["texts"]
        return {
            "greedy_wer": float(word_error_rate(heard, texts)),
            "deaf_wer": float(word_error_rate(misheard, texts)),
            "step_gap": gap / size,
        }


class Growth(Measurement):
    """Work and memory of a recogniser with random weights as recordings get longer.

    Measures ``parameters`` and, for the shortest and the longest recording: ``seconds_short``,
    ``seconds_long`` of CPU time (encode, read, decode two tokens for each second of sound), and
    ``bytes_short``, ``bytes_long`` that the decoder keeps at the end.

    Args:
        model_args: of ``samba_asr_tiny``.
        seconds: of sound, in rising order.
        repeats: of the shortest, whose fastest counts.
    """

    def __init__(
        self, model_args: dict[str, Any], seconds: Sequence[float] = (5, 300), repeats: int = 3
    ) -> None:
        self.model_args, self.seconds, self.repeats = model_args, list(seconds), repeats

    def measure(self) -> dict[str, float]:
        """Run both lengths in this process."""
        torch.manual_seed(0)
        model: Any = zoo.create_model("samba_asr_tiny", **self.model_args).eval()
        result = {"parameters": float(sum(p.numel() for p in model.parameters()))}
        for name, length in (("short", self.seconds[0]), ("long", self.seconds[-1])):
            runs = [self._run(model, length) for _ in range(self.repeats if name == "short" else 1)]
            result[f"seconds_{name}"] = min(seconds for seconds, _ in runs)
            result[f"bytes_{name}"] = float(runs[0][1])
        return result

    @torch.inference_mode()
    def _run(self, model: Any, length: float) -> tuple[float, int]:
        features: Tensor = torch.randn(1, round(100 * length), model.n_mels)
        started = time.process_time()
        memory, lengths = model.encoder(features, torch.tensor([features.shape[1]]))
        cache = model.begin(memory, lengths)
        for _ in range(round(2 * length)):
            model.step(torch.full((1,), 5), cache)
        return time.process_time() - started, cache.nbytes
