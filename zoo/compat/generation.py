"""``mamba_ssm.utils.generation``: the state of a generation, and its loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput, TextStreamer
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zoo.errors import ZooError

__all__ = ["GenerationMixin", "InferenceParams", "decode", "sample"]


@dataclass
class InferenceParams:
    """How far a generation has come, and the states of all layers.

    Args:
        max_seqlen, max_batch_size: of the generation.
        seqlen_offset: tokens that the states have read; 0 begins a new text.
        batch_size_offset: taken and not needed.
        key_value_memory_dict: layer -> its state.
        lengths_per_sample: taken and not needed.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin a new text."""
        self.max_seqlen, self.max_batch_size = max_seqlen, max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


def sample(
    logits: Tensor,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Choose tokens ``[B]`` from logits ``[B, V]``.

    Args:
        logits: of the next token.
        top_k: the best one (1), one of the k best, or of all (0).
        top_p: of the most probable ones that reach this mass together; 0 or 1: of all.
        min_p: without ``top_k``, of those at least so probable as this share of the best one's
            probability.
        temperature: divides the logits, before ``top_p``.

    Raises:
        ZooError: if ``top_p`` is above 1.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    if top_p > 1:
        raise ZooError(f"top_p is a share of the probability, at most 1, not {top_p}")
    steps: list[LogitsProcessor] = []
    if top_k > 0:
        steps.append(TopKLogitsWarper(min(top_k, logits.shape[-1])))
    if temperature != 1.0:
        steps.append(TemperatureLogitsWarper(float(temperature)))
    if top_k == 0 and 0 < min_p < 1:
        steps.append(MinPLogitsWarper(min_p))
    elif 0 < top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    for step in steps:
        logits = step(None, logits)  # type: ignore[arg-type]
    return torch.multinomial(logits.float().softmax(dim=-1), num_samples=1)[:, 0]


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Callable[..., Any],
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: TextStreamer | None = None,
) -> GenerateDecoderOnlyOutput:
    """Continue texts of one length, token by token.

    Args:
        input_ids: int64 ``[B, L]``.
        model: such as :class:`zoo.compat.mixer_seq_simple.MambaLMHeadModel`.
        max_length: tokens of the result, those of ``input_ids`` included.
        top_k, top_p, min_p, temperature: see :func:`sample`.
        repetition_penalty: divides the logits of tokens that have occurred.
        eos_token_id: ends the generation when all texts have come to it at once.
        teacher_outputs: ``[B, n]``, the tokens to take instead of choosing, as far as they go.
        vocab_size: tokens from there on are padding and never chosen.
        cg: CUDA graphs; taken and not needed.
        enable_timing: print how long it took.
        output_scores: return the logits of each new token.
        streamer: takes the tokens as they come.

    Returns:
        ``sequences`` ``[B, n]`` and ``scores``, a tuple of ``[B, V]``.
    """
    state = InferenceParams(max_length, len(input_ids))
    penalty = None
    if repetition_penalty != 1.0:
        penalty = RepetitionPenaltyLogitsProcessor(float(repetition_penalty))
    started = time.perf_counter()
    scores, sequences, new = [], input_ids, input_ids
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while state.seqlen_offset < max_length - 1:
        # For models of other people's that look at positions.
        where = None if state.seqlen_offset == 0 else torch.full_like(new, state.seqlen_offset)
        out = model(new, position_ids=where, inference_params=state, num_last_tokens=1)
        logits = out.logits[:, -1, :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        state.seqlen_offset += new.shape[1]
        if teacher_outputs is not None and teacher_outputs.shape[1] > state.seqlen_offset:
            token = teacher_outputs[:, state.seqlen_offset]
        else:
            logits = logits if penalty is None else penalty(sequences, logits)
            token = sample(logits, top_k, top_p, min_p, temperature)
        new = token[:, None]
        sequences = torch.cat([sequences, new], dim=1)
        if streamer is not None:
            streamer.put(new.cpu())
        if eos_token_id is not None and bool((new == eos_token_id).all()):
            break
    if streamer is not None:
        streamer.end()
    if enable_timing:
        print(f"Prompt processing + decoding time: {1000 * (time.perf_counter() - started):.0f}ms")
    return GenerateDecoderOnlyOutput(sequences=sequences, scores=tuple(scores))  # type: ignore[arg-type]


class GenerationMixin:
    """Gives a language model ``generate``."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The states before the first token; a model has its own."""
        raise NotImplementedError

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """:func:`decode`; only the tokens unless ``return_dict_in_generate``."""
        model: Any = self
        output = decode(
            input_ids, model, max_length, top_k, top_p, min_p, temperature,
            output_scores=output_scores, **kwargs,
        )  # fmt: skip
        if not output_scores:
            output.scores = None
        return output if return_dict_in_generate else output.sequences
