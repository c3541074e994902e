"""The loop around all methods: propose, score, verify, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from zoo.decoding.cache import TreeCache
from zoo.decoding.constraints import (
    Constraints,
    Processor,
    Stop,
    generation_settings,
    token_set,
)
from zoo.decoding.generation import Acceptance, Generation
from zoo.decoding.method import Method, Run, make_method
from zoo.decoding.sampling import Sampler, check_logits
from zoo.decoding.session import AttentionSession, Scores, Session, position_limit
from zoo.decoding.steering import open_session
from zoo.decoding.targets import (
    Source,
    eval_mode,
    first_token,
    is_encoder_decoder,
    text_model,
    unwrapped,
)
from zoo.decoding.verify import Draft, Verdict, Verifier, make_verifier
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config

#: Called with the number of a sequence and its newly decided tokens.
OnTokens = Callable[[int, list[int]], None]
#: Called after each verification with the run, the draft, the scores and the verdicts.
OnStep = Callable[[Run, Draft, Scores, list[Verdict]], None]


@dataclass
class _Sequence:
    """One sequence of the batch as the caller sees it."""

    number: int
    text: list[int]
    new: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def take(self, tokens: Sequence[int], limit: int, stop: Stop) -> tuple[int, bool]:
        """Append tokens up to one that ends the text or the limit; how many, and whether this is
        the end."""
        taken = 0
        for token in tokens:
            self.new.append(token)
            self.text.append(token)
            taken += 1
            if stop.ends(self.text) or len(self.new) >= limit:
                return taken, True
        return taken, False


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Tensor,
    method: str | Method = "plain",
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    verifier: str | Verifier | None = None,
    stop_tokens: int | Iterable[int] | Tensor | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    min_new_tokens: int | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    bad_words_ids: Sequence[Sequence[int]] | None = None,
    logits_processor: Iterable[Processor] | None = None,
    generation_config: GenerationConfig | None = None,
    seed: int | None = None,
    cache: TreeCache | None = None,
    on_tokens: OnTokens | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Generation:
    """Continue texts with a causal LM, several tokens per pass.

    How the model can be decoded is found out before the first token, by a comparison with its own
    full pass (:mod:`zoo.decoding.steering`); what cannot be steered is decoded exactly and slowly.

    Args:
        model: a language model of transformers or of this package; also an encoder-decoder (T5,
            BART), one under ``torch.compile``, one with adapters. It is used in eval mode, and left
            in the mode it is in.
        input_ids: int64 ``[B, T]``; of an encoder-decoder what its encoder reads.
        method: name of a method (:func:`zoo.decoding.list_methods`), or a method object, which
            keeps what it learns from one call to the next.
        attention_mask: ``[B, T]``, 0 where a prompt is padded, on either side.
        max_new_tokens: of each sequence.
        temperature: 0 decodes greedily.
        top_k, top_p, min_p: see :class:`zoo.decoding.Sampler`.
        verifier: rule of acceptance, by default greedy at temperature 0 and the method's own above.
        stop_tokens: end a sequence, and stay in it; by default those of the model's generation
            configuration.
        stop_strings: end a sequence as well, where its text ends with one of them.
        tokenizer: the target's, for ``stop_strings``.
        min_new_tokens: no stop token before there are so many.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids: as in transformers.
        logits_processor: functions of texts ``[n, T]`` and logits ``[n, V]``, such as those of
            transformers; each is asked about every node of a tree with the node's own text.
        generation_config: goes before the model's own. Of both, what shapes the text holds for
            every method: stop, pad and forced tokens, penalties, words that are ruled out, least
            lengths; whether it is drawn, and how, is said by the arguments here alone.
        seed: of the draws; by default a new one each time.
        cache: a new cache of the target's, such as :class:`zoo.decoding.merged_cache.MiniCache`;
            by default the method's own, or a plain one.
        on_tokens: called after each step with a sequence's number and its new tokens.
        on_step: called after each verification with the run, the draft, the scores and the
            verdicts.
        options: of the method.

    Returns:
        See :class:`Generation`. With a lossless method and verifier the text is distributed as the
        model's own; at temperature 0 it is the text of plain greedy decoding, up to rounding in
        half precision.

    Raises:
        ZooError: for an unknown method or option, prompts that leave no room, a model that cannot
            be decoded with this method, logits that are NaN or infinite.
    """
    began = time.perf_counter()
    if isinstance(method, str):
        method = make_method(method, **options)
    elif options:
        raise ZooError(
            f"options {sorted(options)} were given with a method object: give them to "
            f"{type(method).__name__} itself"
        )
    model = unwrapped(model)
    prompts = _prompts(input_ids, attention_mask, model)
    given = {
        "min_new_tokens": min_new_tokens,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "bad_words_ids": bad_words_ids,
        "stop_strings": stop_strings,
    }
    settings = generation_settings(model, generation_config, given)
    stop = _stop(model, settings, stop_tokens, tokenizer)
    device = next(model.parameters()).device
    sampler = Sampler(temperature, top_k, top_p, min_p, seed, device)
    if verifier is None:
        verifier = "greedy" if sampler.greedy else method.verifier
    if isinstance(verifier, str):
        verifier = make_verifier(verifier)

    with eval_mode(model):
        source = None
        if is_encoder_decoder(model):
            source = Source(prompts)
            prompts = [[first_token(model, settings)] for _ in source.texts]
            input_ids = input_ids.new_tensor(prompts)
        _check_room(model, prompts, source, max_new_tokens)
        constraints = Constraints(
            settings,
            logits_processor,
            prompts,
            max_new_tokens,
            stop.tokens,
            device,
            None if source is None else source.texts,
        )
        target = text_model(model, source)
        lengths = (min(map(len, prompts)), max(map(len, prompts)) + max_new_tokens)
        session = open_session(target, len(prompts), lengths)
        method.check(session)
        method.load(target)
        if (chosen := method.cache(target) if cache is None else cache) is not None:
            _use_cache(session, chosen)
        run = Run(
            session,
            sampler,
            prompts,
            stop.tokens,
            source=source,
            stop=stop,
            limit=max_new_tokens,
            constraints=constraints,
        )
        with eval_mode(*method.modules()):
            loop = _Loop(run, method, verifier, stop, constraints, max_new_tokens)
            loop.on_tokens, loop.on_step = on_tokens, on_step
            loop.begin()
            prompt_seconds = time.perf_counter() - began
            while loop.active:
                loop.step()

    return Generation(
        sequences=_pad(input_ids, [row.new for row in loop.rows], _pad_token(model, settings)),
        new_tokens=[row.new for row in loop.rows],
        steps=loop.steps,
        accept_lengths=[row.lengths for row in loop.rows],
        acceptance=loop.acceptance,
        seconds=time.perf_counter() - began,
        prompt_seconds=prompt_seconds,
        target_tokens=run.target.tokens,
        draft_calls=sum(session.calls for session in run.draft_sessions),
        report=method.report(),
    )


def _use_cache(session: Session, cache: TreeCache) -> None:
    if not isinstance(session, AttentionSession):
        raise ZooError(
            f"a cache was given, but {type(session.model).__name__} is decoded by {session.kind}: "
            "leave it out"
        )
    if cache.get_seq_length():
        raise ZooError("the cache that was given holds a text already: give a new one")
    session.cache = cache


class _Loop:
    """A batch of texts on their way."""

    on_tokens: OnTokens | None = None
    on_step: OnStep | None = None

    def __init__(
        self,
        run: Run,
        method: Method,
        verifier: Verifier,
        stop: Stop,
        constraints: Constraints,
        limit: int,
    ) -> None:
        self.run, self.method, self.verifier = run, method, verifier
        self.stop, self.constraints, self.limit = stop, constraints, limit
        self.rows = [_Sequence(row, list(text)) for row, text in enumerate(run.sequences)]
        self.active = list(self.rows)
        self.acceptance, self.steps = Acceptance(), 0

    def begin(self) -> None:
        """Read the prompts."""
        run, method, prompts = self.run, self.method, self.run.sequences
        ends = [False] * len(self.rows)
        if method.reads_prompts:
            nothing = torch.empty(len(prompts), 0, run.target.vocab_size)
            method.start(run, Scores(nothing, None))
            return
        # a prompt of one token leaves nothing to read before it
        if method.starts_from_prompt and min(map(len, prompts)) > 1:
            scores = run.target.advance([prompt[:-1] for prompt in prompts], method.hidden_layer)
            self.constraints.check(scores.logits[:, -1], [prompt[:-1] for prompt in prompts])
        else:
            scores = run.target.advance(prompts, method.hidden_layer)
            self.constraints.check(scores.logits[:, -1], prompts)
            logits = self.constraints.after(scores.logits[:, 0], prompts, range(len(prompts)))
            self._check_allowed(check_logits(logits, "the target")[:, None], [[0]] * len(prompts))
            first = self.verifier.first(logits, run.sampler)
            for place, (row, token) in enumerate(zip(self.rows, first, strict=True)):
                ends[place] = row.take([token], self.limit, self.stop)[1]
                run.sequences[place].append(token)
                if self.on_tokens is not None:
                    self.on_tokens(row.number, [token])
        method.start(run, scores)
        self._drop_finished(ends)

    def step(self) -> None:
        """Propose, score, verify, commit."""
        run, method = self.run, self.method
        draft = method.propose(run)
        scores = method.score(run, draft)
        if self.constraints and not method.constrains:
            numbers = [row.number for row in self.active]
            logits = self.constraints.at_nodes(scores.logits, draft, run.sequences, numbers)
            scores = scores._replace(logits=logits)
        ruled_out = check_logits(scores.logits, "the target")
        if blocked := bool(ruled_out.any()):
            # on paths that the constraints rule out before it may be so; whether a node is on one
            # is seen afterwards
            logits = scores.logits.masked_fill(ruled_out[..., None], 0.0)
            scores = scores._replace(logits=logits)
        verdicts = self.verifier.verify(draft, scores.logits, run.sampler)
        if blocked:
            self._check_allowed(ruled_out, [[0, *verdict.path] for verdict in verdicts])
        self.steps += 1
        if self.on_step is not None:
            self.on_step(run, draft, scores, verdicts)
        ends, tokens = [], draft.tokens.tolist()
        for place, (row, (path, token)) in enumerate(zip(self.active, verdicts, strict=True)):
            fresh = [*(tokens[place][node] for node in path), token]
            taken, end = row.take(fresh, self.limit, self.stop)
            row.lengths.append(taken)
            self.acceptance.add(draft.trees[place], path[:taken])
            run.sequences[place].extend(fresh)
            ends.append(end)
            if self.on_tokens is not None:
                self.on_tokens(row.number, fresh[:taken])
        method.commit(run, [[0, *verdict.path] for verdict in verdicts])
        if not all(ends):
            method.update(run, draft, scores, verdicts)
        self._drop_finished(ends)

    def _check_allowed(self, ruled_out: Tensor, reached: list[list[int]]) -> None:
        """No node ``[B, N]`` that was reached may allow no token at all."""
        if any(bool(ruled_out[row, nodes].any()) for row, nodes in enumerate(reached)):
            raise ZooError(
                "no token is allowed after the text so far: processors, bad words and suppressed "
                "tokens rule all of them out"
            )

    def _drop_finished(self, ends: list[bool]) -> None:
        """Take finished sequences out of the batch."""
        run = self.run
        keep = [place for place, end in enumerate(ends) if not end]
        if keep and len(keep) < len(self.active):
            run.sequences = [run.sequences[place] for place in keep]
            run.target.select(keep)
            for session in run.draft_sessions:
                session.select(keep)
            self.method.select(run, keep)
        self.active = [self.active[place] for place in keep]


def _prompts(input_ids: Tensor, attention_mask: Tensor | None, model: nn.Module) -> list[list[int]]:
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ZooError(f"input_ids is {list(input_ids.shape)}, expected [B, T] with T > 0")
    known = text_config(model).vocab_size
    if input_ids.is_floating_point() or input_ids.min() < 0 or input_ids.max() >= known:
        raise ZooError(
            f"input_ids hold {float(input_ids.min()):g} to {float(input_ids.max()):g} as "
            f"{input_ids.dtype}, expected tokens of the target, integers from 0 to {known - 1}"
        )
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ZooError(
            f"attention_mask is {list(attention_mask.shape)}, expected the shape of input_ids, "
            f"{list(input_ids.shape)}"
        )
    prompts = [
        ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask.bool(), strict=True)
    ]
    if not all(prompts):
        raise ZooError("a prompt of the batch is all padding: each needs one token or more")
    return prompts


def _check_room(
    model: nn.Module, prompts: list[list[int]], source: Source | None, max_new_tokens: int
) -> None:
    if max_new_tokens < 1:
        raise ZooError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    limit, longest = position_limit(model), max(map(len, prompts))
    if source is not None and max(map(len, source.texts)) > limit:
        raise ZooError(
            f"the encoder was given {max(map(len, source.texts))} tokens, but the model has "
            f"{limit} positions: shorten the input"
        )
    # the last new token is not read any more
    if longest + max_new_tokens - 1 > limit:
        raise ZooError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones were asked for, but the "
            f"model has {limit} positions: shorten the prompt or lower max_new_tokens"
        )


def _stop(
    model: nn.Module,
    settings: GenerationConfig,
    given: Any,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Stop:
    if given is not None:
        tokens = token_set(given, "stop_tokens")
    elif settings.eos_token_id is not None or hasattr(model, "generation_config"):
        tokens = token_set(settings.eos_token_id, "eos_token_id of the generation configuration")
    else:
        tokens = token_set(getattr(model.config, "eos_token_id", None), "eos_token_id of the model")
    return Stop(tokens, settings.stop_strings, tokenizer)


def _pad_token(model: nn.Module, settings: GenerationConfig) -> int:
    """What stands behind a finished text, as in transformers: the pad token, or a stop token."""
    for token in (settings.pad_token_id, getattr(text_config(model), "pad_token_id", None)):
        if token is not None:
            return min(token_set(token, "pad_token_id"))
    return min(token_set(settings.eos_token_id, "eos_token_id"), default=0)


def _pad(input_ids: Tensor, new: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, new))
    tail = [[*tokens, *[pad] * (width - len(tokens))] for tokens in new]
    return torch.cat([input_ids, input_ids.new_tensor(tail).view(len(new), width)], dim=1)
