"""Lexical Unit Decoding: a language model that says whole units where it is sure of them.

Paper: Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs
(LREC-COLING 2024, arXiv 2405.15208). Its repository holds no code; what the abstract leaves open is
an option here. The text is not the target's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.sampling import decided
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree, batch_parents
from zoo.decoding.verify import Draft
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config


def look_ahead_token(model: nn.Module) -> int:
    """What a model reads for a token that is not known yet: what it was trained with, or its pad
    token, or the last of its vocabulary."""
    config = text_config(model)
    for name in ("look_ahead_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and 0 <= token < config.vocab_size:
            return token
    return config.vocab_size - 1


def repeats(text: Sequence[int], token: int, n: int, times: int) -> bool:
    """Whether a token repeats the one before it, or ends an n-gram that stands in the text so many
    times already."""
    if text and text[-1] == token:
        return True
    gram, whole = (*text[len(text) - n + 1 :], token), range(len(text) - n + 1)
    if len(gram) < n:
        return False
    return sum(tuple(text[i : i + n]) == gram for i in whole) >= times


@register_method
class LUD(Method):
    """Look-ahead tokens stand behind the text, and what is said at them with certainty is text too.

    The tokens of a span do not see each other. The next pass reads them as the text that they are,
    and new look-ahead tokens behind them; none of these stays in the cache.

    Args:
        k: longest span, k - 1 look-ahead tokens.
        beta: probability that a look-ahead token's best guess must exceed; above 1 none does, and
            below 0 all do.
        pad: the look-ahead token; by default the one that the target was trained with, see
            :func:`look_ahead_token`.
        ngram, times: end a span before a token that repeats the one before it, or that ends an
            n-gram that was written so many times already; 0 times never do.
    """

    name = "lud"
    proposer = "the target itself, at look-ahead tokens behind the text"
    lossless = False

    def __init__(
        self, k: int = 4, beta: float = 0.9, pad: int | None = None, ngram: int = 3, times: int = 2
    ) -> None:
        if k < 1 or ngram < 2 or times < 0:
            raise ZooError(
                f"k {k}, ngram {ngram}, times {times}: expected spans of 1 or more tokens, n-grams "
                "of 2 or more and 0 or more times"
            )
        self.k, self.beta, self.pad, self.ngram, self.times = k, beta, pad, ngram, times

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The one setting whose text is the target's own: no guess is certain enough."""
        return {"": cls(beta=2.0)}

    def load(self, model: nn.Module) -> None:
        """Find the look-ahead token."""
        size = text_config(model).vocab_size
        if self.pad is not None and not 0 <= self.pad < size:
            raise ZooError(f"pad is {self.pad}, expected a token of the target, 0 to {size - 1}")
        self._pad = look_ahead_token(model) if self.pad is None else self.pad

    def start(self, run: Run, prompt: Scores) -> None:
        """Nothing is known of the text but the prompt."""
        self._spans: Counter[int] = Counter()

    def propose(self, run: Run) -> Draft:
        """Read what is new with look-ahead tokens behind it, and take what is certain."""
        unread = [
            sequence[length:]
            for sequence, length in zip(run.sequences, run.target.lengths, strict=True)
        ]
        rows = [[*row, *[self._pad] * (self.k - 1)] for row in unread]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        chains = batch_parents([Tree.chain(len(row) - 1) for row in rows])
        said = run.target.grow(tokens.to(run.target.device), chains).logits
        self._read = [len(row) for row in unread]
        places = torch.tensor(self._read, device=said.device)[:, None] - 1
        places = places + torch.arange(self.k, device=said.device)
        self._logits = said[torch.arange(len(rows), device=said.device)[:, None], places]
        return self._spans_of(run, self._logits)

    def _spans_of(self, run: Run, logits: Tensor) -> Draft:
        """The spans that logits ``[B, k, V]`` give, as chains of all but their last tokens."""
        confidence, best = logits.float().softmax(-1).max(-1)
        spans = []
        for row, (sure, guesses) in enumerate(
            zip(confidence[:, 1:].tolist(), best[:, 1:].tolist(), strict=True)
        ):
            count = 1
            while count < self.k and sure[count - 1] > self.beta:
                count += 1
            span = guesses[: count - 1]
            if span:
                first = run.sampler.draw(run.sampler.probs(logits[row, 0]))
                span = self._unrepeated(run.sequences[row], [int(first), *span])
            spans.append(span)
        self._logits = decided(logits, spans)
        size = max(len(span) for span in spans) or 1
        drafted = torch.zeros(len(spans), size, dtype=torch.long, device=logits.device)
        for row, (span, root) in enumerate(zip(spans, run.roots, strict=True)):
            chain = [root, *span[:-1]]
            drafted[row, : len(chain)] = torch.tensor(chain)
        return Draft([Tree.chain(max(len(span) - 1, 0)) for span in spans], drafted)

    def _unrepeated(self, text: Sequence[int], span: list[int]) -> list[int]:
        """A span up to the first guess that repeats."""
        if self.times:
            for place in range(1, len(span)):
                if repeats([*text, *span[:place]], span[place], self.ngram, self.times):
                    return span[:place]
        return span

    def score(self, run: Run, draft: Draft) -> Scores:
        """What was said in the same pass."""
        return Scores(self._logits[:, : draft.tokens.shape[1]], None)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Keep the text that was read, and no look-ahead token."""
        self._spans.update(map(len, paths))
        run.target.commit([range(count) for count in self._read])

    def report(self) -> dict[str, float]:
        """Share of the tokens that look-ahead tokens said, and of spans longer than one."""
        tokens = sum(length * count for length, count in self._spans.items())
        passes = self._spans.total()
        return {
            "share_looked_ahead": 1 - passes / max(tokens, 1),
            "share_of_spans": 1 - self._spans[1] / max(passes, 1),
        }
