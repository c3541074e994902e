"""Superposed decoding: several drafts for one pass a token, told apart by n-grams.

Paper: Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass
(NeurIPS 2024, arXiv 2405.18400). The bookkeeping is that of RAIVNLab/SuperposedDecoding at 33d283e.
The text is not the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.decoding.beam import Found
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.ngrams import NGrams
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree, batch_parents
from zoo.decoding.whole_texts import WholeTextMethod
from zoo.errors import ZooError
from zoo.models.decoding._virtual_tokens import virtual_tokens

#: Takes a finished draft out of those that go on.
OUT = 1e7


class Drafts:
    """k drafts of each of B texts, which share the next token's distribution.

    Args:
        texts: the B texts so far.
        k: drafts of each.
        vocab_size: V.
        smoothing: ``geom`` moves the distribution towards each draft's own n-grams, ``all`` takes
            these alone, None neither. As in the authors' code ``all`` never finds pairs.
        ngrams: counts.
        alpha: share of the n-grams in the logarithm.
        i_weights: weight of n-grams of 2, 3, ... tokens.
        penalty: on drafts for which no n-gram knows any of the kept tokens.
        stop_tokens: end a draft.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        k: int,
        vocab_size: int,
        smoothing: str | None,
        ngrams: NGrams | None,
        alpha: float,
        i_weights: Sequence[float],
        penalty: float,
        stop_tokens: frozenset[int],
    ) -> None:
        self.k, self.vocab_size, self.smoothing = k, vocab_size, smoothing
        self.ngrams, self.alpha, self.penalty = ngrams, alpha, penalty
        self.i_weights, self.stop_tokens = list(i_weights), stop_tokens
        self._begun = [list(text) for text in texts]
        self.alive: list[list[list[int]]] = [[[] for _ in range(k)] for _ in texts]
        self.scores = torch.zeros(len(texts), k)
        self.finished: list[list[tuple[float, list[int]]]] = [[] for _ in texts]
        self._first = True

    def texts(self) -> list[list[int]]:
        """The text of each draft, those of the first text first."""
        return [
            [*text, *draft]
            for text, drafts in zip(self._begun, self.alive, strict=True)
            for draft in drafts
        ]

    def step(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Let all drafts grow by a token.

        Args:
            probs: ``[B, k, V]``, of the kept tokens, 0 elsewhere.

        Returns:
            The drafts' newest tokens ``[B, k]``, and their weights in the superposition.
        """
        said = self.smoothed(probs)  # [B, k, V]
        if self._first:  # all drafts are one still
            total = self.scores[:, :1] + said[:, 0]
        else:
            total = (self.scores[..., None] + said).flatten(1)
        values, places = total.topk(min(2 * self.k, total.shape[1]), dim=1)
        above = (places // self.vocab_size).tolist()
        tokens, stops = places % self.vocab_size, torch.zeros_like(values)
        for token in self.stop_tokens:
            stops[tokens == token] = OUT
        best, chosen = (values - stops).topk(min(self.k, values.shape[1]), dim=1)
        for row, found in enumerate(tokens.tolist()):
            drafts = self.alive[row]
            grown = [[*drafts[a], token] for a, token in zip(above[row], found, strict=True)]
            ended = [
                (float(value), text)
                for value, text, stop in zip(values[row], grown, stops[row], strict=True)
                if stop
            ]
            self.finished[row] = sorted([*self.finished[row], *ended], key=lambda pair: -pair[0])[
                : self.k
            ]
            self.alive[row] = [grown[place] for place in chosen[row].tolist()]
        self.scores, self._first = best, False
        # a text whose drafts have all ended has none that goes on
        return tokens.gather(1, chosen), best.softmax(-1).nan_to_num(0.0)

    @property
    def over(self) -> bool:
        """Whether no draft goes on."""
        return not bool((self.scores > -OUT).any())

    def smoothed(self, probs: Tensor) -> Tensor:
        """log of the distribution of each draft ``[B, k, V]``."""
        if self.smoothing is None or self.ngrams is None:
            return probs.log()
        own = self.counted(probs)
        if self.smoothing == "all":
            return own.log()
        kept = (1 - self.alpha) * probs.log()
        mixed = kept + self.alpha * (own * (probs > 0)).log()
        unknown = (mixed == -torch.inf).all(-1, keepdim=True)
        return torch.where(unknown, kept - self.penalty, mixed)

    def counted(self, probs: Tensor) -> Tensor:
        """What the n-grams say behind each draft, ``[B, k, V]``; they need not sum to 1."""
        own = torch.zeros_like(probs)
        shortest = 2 if self.smoothing == "all" else 1
        for number, text in enumerate(self.texts()):
            row, draft = divmod(number, self.k)
            for length, weight in enumerate(self.i_weights, start=1):
                if length < shortest or length > len(text):
                    continue
                following = self.ngrams.following(text[-length:])  # type: ignore[union-attr]
                if following:
                    places = torch.tensor(list(following), device=own.device)
                    counts = torch.tensor(list(following.values()), device=own.device)
                    own[row, draft, places] += weight * counts / counts.sum()
        return own


@register_method
class Superposed(WholeTextMethod):
    """Feed the target the weighted mean of the drafts' last embeddings.

    Args:
        k: drafts of each text; the best by score per token becomes the text, ``found`` has all.
        alpha, i_weights, penalty, smoothing: see :class:`Drafts`.
        tau: temperature of the target's distribution.
        n_token_sample: how many of its likeliest tokens are kept.
        ngrams: counts, or the file in which :meth:`NGrams.save` has written them; None: the drafts
            share one distribution.
    """

    name = "superposed"
    proposer = "nobody: several drafts share each pass"

    def __init__(
        self,
        k: int = 3,
        alpha: float = 0.54,
        tau: float = 0.06,
        n_token_sample: int = 9,
        smoothing: Literal["geom", "all"] | None = "geom",
        ngrams: NGrams | str | Path | None = None,
        i_weights: Sequence[float] = (0.01, 0.04, 0.15, 0.18, 0.12),
        penalty: float = 200.0,
    ) -> None:
        if k < 1 or n_token_sample < 1 or not tau > 0 or not 0 <= alpha <= 1:
            raise ZooError(
                f"k {k}, n_token_sample {n_token_sample}, tau {tau}, alpha {alpha}: expected 1 or "
                "more drafts and tokens, a temperature above 0 and a share"
            )
        if smoothing not in ("geom", "all", None):
            raise ZooError(f"smoothing is {smoothing!r}: expected geom, all or nothing")
        self.k, self.alpha, self.tau, self.n_token_sample = k, alpha, tau, n_token_sample
        self.smoothing, self.i_weights, self.penalty = smoothing, i_weights, penalty
        self.ngrams = ngrams if isinstance(ngrams, NGrams | None) else NGrams.load(ngrams)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The setting whose text is the target's own: one draft."""
        return {"": cls(k=1, tau=1.0, n_token_sample=1)}

    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """One pass of the target for each new token, however many drafts there are."""
        target, batch = run.target, len(run.sequences)
        size, embed = target.vocab_size, run.model.get_input_embeddings()
        calls = target.calls
        drafts = Drafts(
            run.sequences,
            self.k,
            size,
            self.smoothing,
            self.ngrams,
            self.alpha,
            self.i_weights,
            self.penalty,
            run.stop_tokens,
        )
        mixed = embed.weight.new_zeros(0, embed.weight.shape[1])
        chain = batch_parents([Tree.root()] * batch).to(target.device)
        rows = [row for row in range(batch) for _ in range(self.k)]
        logits = first.logits[:, -1]
        for length in range(1, run.limit + 1):
            each = run.constrained(logits.repeat_interleave(self.k, 0), drafts.texts(), rows)
            newest, weights = drafts.step(self._kept(each.cpu().view(batch, self.k, -1)))
            if drafts.over or length == run.limit:
                break
            states = embed(newest.to(target.device))  # [B, k, d]
            sums = (weights.to(states)[..., None] * states).sum(1)
            # a number for each superposition: what reads a text again finds all of them
            tokens = size + len(mixed) + torch.arange(batch, device=target.device)[:, None]
            mixed = torch.cat([mixed, sums.to(mixed)])
            with virtual_tokens(run.model, size, mixed):
                logits = target.grow(tokens, chain).logits[:, 0]
            target.commit([[0]] * batch)
        # the prompt's pass says the first token
        self._passes = (target.calls - calls + 1) / max(len(f) for f in drafts.alive[0])
        found = []
        for row in range(batch):
            ended = [(score, text) for score, text in drafts.finished[row] if score > -OUT]
            going = zip(drafts.scores[row].tolist(), drafts.alive[row], strict=True)
            every = [*ended, *(pair for pair in going if pair[0] > -OUT)]
            kept = [Found(text, score / len(text)) for score, text in every]
            found.append(sorted(kept, key=lambda draft: -draft.score))
        return found

    def _kept(self, logits: Tensor) -> Tensor:
        """Probabilities of the likeliest tokens, 0 elsewhere."""
        probs = (logits.float() / self.tau).softmax(-1)
        values, places = probs.topk(min(self.n_token_sample, probs.shape[-1]))
        kept = torch.zeros_like(probs).scatter(-1, places, values)
        return kept / kept.sum(-1, keepdim=True)

    def report(self) -> dict[str, float]:
        """Drafts of each text, how many of them differ, and passes of the target for a token."""
        different = [len({tuple(f.tokens) for f in found}) for found in self.found]
        return {
            "drafts": self.k,
            "different_drafts": sum(different) / len(different),
            "passes_per_token": self._passes,
        }
