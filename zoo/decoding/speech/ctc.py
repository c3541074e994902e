"""Connectionist temporal classification (Graves et al. 2006) for reading out, scoring, aligning.

Token 0 is the blank.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

BLANK = 0


def ctc_greedy(logits: Tensor) -> list[int]:
    """The best token of each frame [T, V], repetitions and blanks taken out."""
    return [token for token, _ in groupby(logits.argmax(-1).tolist()) if token != BLANK]


def ctc_align(log_probs: Tensor, tokens: list[int]) -> list[tuple[int, int]]:
    """Where each token of a text is said (Viterbi).

    Args:
        log_probs: [T, V].
        tokens: the text, without special tokens.

    Returns:
        for each token, its first frame and the one after its last; empty if the text is too long
        for the frames.
    """
    states = np.full(2 * len(tokens) + 1, BLANK)
    states[1::2] = tokens
    emitted = log_probs.double().cpu().numpy()[:, states]  # [T, 2U + 1]
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    came = np.zeros(emitted.shape, int)  # by how many states
    for t in range(1, len(emitted)):
        moved = np.full((3, len(states)), -np.inf)
        moved[0] = best
        moved[1, 1:] = best[:-1]
        moved[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        came[t] = moved.argmax(0)
        best = moved.max(0) + emitted[t]
    state = len(states) - 1
    if len(tokens) and best[-2] > best[-1]:
        state -= 1
    if not np.isfinite(best[state]):
        return []
    path = [state]
    for t in range(len(emitted) - 1, 0, -1):
        state -= came[t, state]
        path.append(state)
    frames = np.array(path[::-1])
    spans = []
    for i in range(len(tokens)):
        (inside,) = np.nonzero(frames == 2 * i + 1)
        spans.append((int(inside[0]), int(inside[-1]) + 1))
    return spans


class CTCPrefixScorer:
    """Log-probability that a text begins with a prefix, for every next token at once.

    Watanabe et al. 2017, "Hybrid CTC/attention architecture", algorithm 2. A prefix's state is the
    log-probability, at each frame, of paths that spell it and end in its last token or in blank.

    Args:
        log_probs: of one recording [T, V].
        eos: token that ends a text; scoring it means that nothing follows.
    """

    def __init__(self, log_probs: Tensor, eos: int) -> None:
        self.log_probs, self.eos = log_probs.float(), eos

    def begin(self) -> Tensor:
        """State of the empty prefix [1, 2, T]: ends in a token, ends in blank."""
        blank = self.log_probs[:, BLANK].cumsum(0)
        return torch.stack([torch.full_like(blank, -torch.inf), blank])[None]

    def score(self, states: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all continuations.

        Args:
            states: of N prefixes [N, 2, T].
            last: their last tokens [N], the blank for the empty prefix.

        Returns:
            log-probability of texts that begin with prefix and token [N, V]; states of the longer
            prefixes [N, V, 2, T].
        """
        frames, vocab = self.log_probs.shape
        count = len(states)
        token, blank = states[:, 0], states[:, 1]  # [N, T]
        both = torch.logaddexp(token, blank)
        # what comes before the new token: after the same token, only paths that end in blank
        before = both[:, None].expand(count, vocab, frames).clone()
        before[torch.arange(count), last] = blank
        ends = torch.full((count, vocab), -torch.inf)
        blanks = torch.full((count, vocab), -torch.inf)
        ends[last == BLANK] = self.log_probs[0]  # a first token may come in the first frame
        total, kept = ends, [torch.stack([ends, blanks], -1)]
        for t in range(1, frames):
            start = before[..., t - 1]
            total = torch.logaddexp(total, start + self.log_probs[t])
            ends, blanks = (
                torch.logaddexp(ends, start) + self.log_probs[t],
                torch.logaddexp(ends, blanks) + self.log_probs[t, BLANK],
            )
            kept.append(torch.stack([ends, blanks], -1))
        total[:, self.eos] = both[:, -1]
        total[:, BLANK] = -torch.inf
        return total, torch.stack(kept, -1)
