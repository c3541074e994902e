"""Entropy Adaptive Decoding: a small model writes, and the target where the small one is unsure.

Paper: Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference (2025, arXiv
2502.06833). No code was published. The text is not the target's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.decoding.draft_model import DraftModelMethod, trial_draft
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft
from zoo.errors import ZooError


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy in bits of the distributions of logits ``[..., V]``, in float32 and without any
    temperature; logits of minus infinity count for nothing."""
    log_probs = logits.float().log_softmax(-1)
    parts = log_probs.exp() * log_probs
    return -parts.nan_to_num(0.0).sum(-1) / math.log(2)


def relative_cost(share: float, small: float, large: float) -> float:
    """Cost of a text relative to that of the large model alone, by their numbers of parameters.

    Args:
        share: of the tokens that the large model wrote.
        small, large: parameters.
    """
    return share + (1 - share) * small / large


@dataclass
class Writer:
    """Who writes a sequence, and what is known of its last tokens.

    Attributes:
        large: whether the target writes the next token.
        since: tokens since the last change.
        entropies: of the last tokens, in bits.
        by_target: for each token of the sequence whether the target wrote it.
    """

    large: bool
    since: int = 0
    entropies: list[float] = field(default_factory=list)
    by_target: list[bool] = field(default_factory=list)


@register_method
class EAD(DraftModelMethod):
    """One of two models runs for each token, and what it says is kept without verification.

    The target writes while the mean entropy of the last tokens is above the threshold. Each model
    reads what the other wrote in one pass when its turn comes. In a batch a model runs if one
    sequence at least wants it.

    Args:
        draft: the small model; see :class:`DraftModelMethod`.
        threshold: tau, in bits; below 0 the target alone writes.
        window: w, tokens whose entropies are averaged.
        dwell: least tokens between two changes.
        start: who writes first.
        rerun: if a change to the target is due after the small model's token, let the target write
            this token already.
        lower: go back to the small model only where the mean is not above this; by default the
            threshold.
    """

    name = "ead"
    proposer = "nobody: a small model writes where it is sure"
    lossless = False

    def __init__(
        self,
        draft: nn.Module | str | Path,
        threshold: float = 1.0,
        window: int = 5,
        dwell: int = 4,
        start: Literal["small", "large"] = "small",
        rerun: bool = False,
        lower: float | None = None,
    ) -> None:
        super().__init__(draft)
        if window < 1 or dwell < 1 or start not in ("small", "large"):
            raise ZooError(
                f"window {window}, dwell {dwell}, start {start!r}: expected 1 or more tokens of "
                "both, and small or large"
            )
        self.lower = threshold if lower is None else lower
        if not self.lower <= threshold:
            raise ZooError(f"lower is {lower}, expected at most the threshold, {threshold}")
        self.threshold, self.window, self.dwell = threshold, window, dwell
        self.first_large, self.rerun = start == "large", rerun
        #: Of the sequences of the last call.
        self.writers: list[Writer] = []

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The one setting whose text is the target's own: the small model never writes."""
        return {"": cls(trial_draft(target), threshold=-1.0, start="large")}

    def start(self, run: Run, prompt: Scores) -> None:
        """Open the small model's cache; the target has read the prompts."""
        super().start(run, prompt)
        self.writers = [Writer(self.first_large) for _ in run.sequences]
        self._active = list(self.writers)
        self._sizes = tuple(
            sum(p.numel() for p in model.parameters()) for model in (self.draft, run.model)
        )
        self._target_session = run.target

    def propose(self, run: Run) -> Draft:
        """The roots alone."""
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.roots), tokens)

    def score(self, run: Run, draft: Draft) -> Scores:
        """What follows the roots, said by the model whose turn it is."""
        wanted = [writer.large for writer in self._active]
        small = None if all(wanted) else self.catch_up(run).logits  # [B, 1, V]
        large = self._target(run) if any(wanted) else None
        logits = self._choose(small, large, wanted)
        self._decide(logits)
        later = [writer.large or was for writer, was in zip(self._active, wanted, strict=True)]
        if self.rerun and later != wanted:
            large, wanted = self._target(run) if large is None else large, later
            logits = self._choose(small, large, wanted)
        for writer, by_target in zip(self._active, wanted, strict=True):
            writer.by_target.append(by_target)
        return Scores(logits, None)

    def _target(self, run: Run) -> Tensor:
        """Let the target read what it has not, and say what follows, ``[B, 1, V]``."""
        session = run.target
        rows = [
            sequence[length:]
            for sequence, length in zip(run.sequences, session.lengths, strict=True)
        ]
        return session.advance(rows).logits

    def _choose(self, small: Tensor | None, large: Tensor | None, wanted: list[bool]) -> Tensor:
        if small is None or large is None:
            return large if small is None else small  # type: ignore[return-value]
        by_target = torch.tensor(wanted, device=large.device)[:, None, None]
        return torch.where(by_target, large, small.to(large.dtype))

    def _decide(self, logits: Tensor) -> None:
        """From the entropies of the models that ran, who runs next."""
        for writer, bits in zip(self._active, entropy_bits(logits[:, 0]).tolist(), strict=True):
            writer.entropies = [*writer.entropies, bits][-self.window :]
            writer.since += 1
            if writer.since < self.dwell:
                continue
            if (turn := self.wants_target(writer)) != writer.large:
                writer.large, writer.since = turn, 0

    def wants_target(self, writer: Writer) -> bool:
        """Whether the target shall write next."""
        mean = sum(writer.entropies) / len(writer.entropies)
        return mean > (self.lower if writer.large else self.threshold)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Nothing: both models keep what they have read."""

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Go on with these sequences."""
        self._active = [self._active[row] for row in rows]

    def report(self) -> dict[str, float]:
        """Share of the tokens that the target wrote; what both models cost and read."""
        marks = [mark for writer in self.writers for mark in writer.by_target]
        share = sum(marks) / max(len(marks), 1)
        return {
            "share_by_target": share,
            "relative_cost": relative_cost(share, *self._sizes),
            "tokens_read_by_small_model": self.session.tokens,
            "tokens_read_by_target": self._target_session.tokens,
        }
