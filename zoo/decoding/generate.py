"""The loop around all methods: propose, score, verify, commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding.method import Method, Run, make_method
from zoo.decoding.sampling import Sampler
from zoo.decoding.session import open_session
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft, Verdict, Verifier, make_verifier
from zoo.errors import ZooError

#: Called with the number of a sequence and its newly decided tokens.
OnTokens = Callable[[int, list[int]], None]


@dataclass
class Acceptance:
    """What became of the proposals of a run.

    Attributes:
        drafted: nodes that were proposed, roots not counted.
        accepted: how many of them became text.
        offered_by_depth: how often there was a node of that depth below an accepted one (depth 1:
            the root's children).
        accepted_by_depth: how often one of them was accepted.
        accepted_by_rank: ``(depth, rank)`` of the accepted nodes; rank 0 is a parent's first
            candidate.
    """

    drafted: int = 0
    accepted: int = 0
    offered_by_depth: Counter[int] = field(default_factory=Counter)
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    accepted_by_rank: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def wasted(self) -> int:
        """Nodes that were proposed in vain."""
        return self.drafted - self.accepted

    def shares(self) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
        """By depth how many of the offers were accepted; by (depth, rank) the part of that rank."""
        by_depth = {
            depth: self.accepted_by_depth[depth] / offered
            for depth, offered in sorted(self.offered_by_depth.items())
        }
        by_rank = {
            (depth, rank): count / self.accepted_by_depth[depth]
            for (depth, rank), count in sorted(self.accepted_by_rank.items())
        }
        return by_depth, by_rank

    def add(self, tree: Tree, path: Sequence[int]) -> None:
        """Count one step of one sequence."""
        self.drafted += len(tree) - 1
        self.accepted += len(path)
        for depth, node in enumerate(path, start=1):
            self.offered_by_depth[depth] += 1
            self.accepted_by_depth[depth] += 1
            self.accepted_by_rank[depth, tree.ranks[node]] += 1
        if tree.children[path[-1] if path else 0]:
            self.offered_by_depth[len(path) + 1] += 1


@dataclass
class Generation:
    """What :func:`generate` returns.

    Attributes:
        sequences: int64 ``[B, T + longest continuation]``: the prompts as they were given, then the
            new tokens, then padding.
        new_tokens: the new tokens of each sequence, a stop token included.
        steps: how often the target verified a tree.
        accept_lengths: for each sequence the number of new tokens of each step, the target's own
            included; plain decoding has ones. A token that the prompt's pass gave is not in it.
        acceptance: what became of the proposals.
        seconds: time of the whole call, and of reading the prompt.
        target_tokens: tokens that went through the target.
        draft_calls: passes of the draft models.
    """

    sequences: Tensor
    new_tokens: list[list[int]]
    steps: int
    accept_lengths: list[list[int]]
    acceptance: Acceptance
    seconds: float
    prompt_seconds: float
    target_tokens: int
    draft_calls: int

    @property
    def tokens_per_step(self) -> float:
        """Mean number of new tokens of a step, over all steps and sequences."""
        lengths = [n for row in self.accept_lengths for n in row]
        return sum(lengths) / max(len(lengths), 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences per second, the reading of the prompts left out."""
        return sum(map(len, self.new_tokens)) / max(self.seconds - self.prompt_seconds, 1e-9)


@dataclass
class _Sequence:
    """One sequence of the batch as the caller sees it."""

    number: int
    new: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def take(self, tokens: Sequence[int], limit: int, stop: frozenset[int]) -> tuple[int, bool]:
        """Append tokens up to a stop token or the limit; how many, and whether this is the end."""
        taken = 0
        for token in tokens:
            self.new.append(token)
            taken += 1
            if token in stop or len(self.new) >= limit:
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
    verifier: str | Verifier | None = None,
    stop_tokens: int | Iterable[int] | None = None,
    seed: int | None = None,
    on_tokens: OnTokens | None = None,
    on_step: Callable[[Run, Draft, Any, list[Verdict]], None] | None = None,
    **options: Any,
) -> Generation:
    """Continue texts with a causal LM, several tokens per pass.

    Args:
        model: a causal LM of transformers (Llama, GPT-2, Qwen2, Mistral and others with a key-value
            cache; Mamba and Mamba-2), in eval mode.
        input_ids: int64 ``[B, T]``.
        method: name of a method (:func:`zoo.decoding.list_methods`), or a method object, which
            keeps what it learns from one call to the next.
        attention_mask: ``[B, T]``, 0 where a prompt is padded, on either side.
        max_new_tokens: of each sequence.
        temperature: 0 decodes greedily.
        top_k, top_p: see :class:`zoo.decoding.Sampler`.
        verifier: rule of acceptance, by default greedy at temperature 0 and the method's own above.
        stop_tokens: end a sequence, and stay in it; by default the model's own.
        seed: of the draws; by default a new one each time.
        on_tokens: called after each step with a sequence's number and its new tokens.
        on_step: called after each verification with the run, the draft, the scores and the
            verdicts.
        options: of the method.

    Returns:
        See :class:`Generation`. With a lossless verifier the text is distributed as the model's
        own; at temperature 0 it is the text of plain greedy decoding, up to rounding in half
        precision.

    Raises:
        ZooError: for an unknown method or option, or prompts that leave no room.
    """
    began = time.perf_counter()
    if isinstance(method, str):
        method = make_method(method, **options)
    elif options:
        raise ZooError(
            f"options {sorted(options)} were given with a method object: give them to "
            f"{type(method).__name__} itself"
        )
    prompts = _prompts(input_ids, attention_mask)
    _check_room(model, prompts, max_new_tokens)
    stop = _stop_tokens(model, stop_tokens)
    sampler = Sampler(temperature, top_k, top_p, seed, next(model.parameters()).device)
    if verifier is None:
        verifier = "greedy" if sampler.greedy else method.verifier
    if isinstance(verifier, str):
        verifier = make_verifier(verifier)

    method.load(model)
    run = Run(open_session(model, len(prompts)), sampler, prompts, stop)
    rows = [_Sequence(number) for number in range(len(prompts))]
    active = list(rows)
    ends = [False] * len(rows)
    # a prompt of one token leaves nothing to read before it
    if method.starts_from_prompt and min(map(len, prompts)) > 1:
        scores = run.target.advance([prompt[:-1] for prompt in prompts], method.hidden_layer)
    else:
        scores = run.target.advance(prompts, method.hidden_layer)
        first = verifier.first(scores.logits[:, 0], sampler)
        for row, token in zip(rows, first, strict=True):
            ends[row.number] = row.take([token], max_new_tokens, stop)[1]
            run.sequences[row.number].append(token)
            if on_tokens is not None:
                on_tokens(row.number, [token])
    method.start(run, scores)
    prompt_seconds = time.perf_counter() - began
    active = _drop_finished(run, method, active, ends)

    acceptance, steps = Acceptance(), 0
    while active:
        draft = method.propose(run)
        scores = method.score(run, draft)
        verdicts = verifier.verify(draft, scores.logits, sampler)
        steps += 1
        if on_step is not None:
            on_step(run, draft, scores, verdicts)
        ends = []
        tokens = draft.tokens.tolist()
        for place, (row, (path, token)) in enumerate(zip(active, verdicts, strict=True)):
            fresh = [*(tokens[place][node] for node in path), token]
            taken, end = row.take(fresh, max_new_tokens, stop)
            row.lengths.append(taken)
            acceptance.add(draft.trees[place], path[:taken])
            run.sequences[place].extend(fresh)
            ends.append(end)
            if on_tokens is not None:
                on_tokens(row.number, fresh[:taken])
        run.target.commit([[0, *verdict.path] for verdict in verdicts])
        if not all(ends):
            method.update(run, draft, scores, verdicts)
        active = _drop_finished(run, method, active, ends)

    return Generation(
        sequences=_pad(input_ids, [row.new for row in rows], model),
        new_tokens=[row.new for row in rows],
        steps=steps,
        accept_lengths=[row.lengths for row in rows],
        acceptance=acceptance,
        seconds=time.perf_counter() - began,
        prompt_seconds=prompt_seconds,
        target_tokens=run.target.tokens,
        draft_calls=sum(session.calls for session in run.draft_sessions),
    )


def _drop_finished(
    run: Run, method: Method, active: list[_Sequence], ends: list[bool]
) -> list[_Sequence]:
    """Take finished sequences out of the batch."""
    keep = [place for place, end in enumerate(ends) if not end]
    if keep and len(keep) < len(active):
        run.sequences = [run.sequences[place] for place in keep]
        run.target.select(keep)
        for session in run.draft_sessions:
            session.select(keep)
        method.select(run, keep)
    return [active[place] for place in keep]


def _prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ZooError(f"input_ids is {list(input_ids.shape)}, expected [B, T] with T > 0")
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


def _check_room(model: nn.Module, prompts: list[list[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ZooError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompts))
    # the last new token is not read any more
    if limit is not None and longest + max_new_tokens - 1 > limit:
        raise ZooError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones were asked for, but the "
            f"model has {limit} positions: shorten the prompt or lower max_new_tokens"
        )


def _stop_tokens(model: nn.Module, given: int | Iterable[int] | None) -> frozenset[int]:
    if given is None:
        settings = getattr(model, "generation_config", None) or model.config
        given = getattr(settings, "eos_token_id", None)
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)


def _pad(input_ids: Tensor, new: list[list[int]], model: nn.Module) -> Tensor:
    pad = getattr(model.config, "pad_token_id", None) or 0
    width = max(map(len, new))
    tail = [[*tokens, *[pad] * (width - len(tokens))] for tokens in new]
    return torch.cat([input_ids, input_ids.new_tensor(tail).view(len(new), width)], dim=1)
