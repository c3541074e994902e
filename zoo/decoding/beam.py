"""Beam search: the likeliest texts side by side, for language models and for recognisers of speech.

:class:`Beams` keeps the texts of one search and knows when nothing can overtake any more. What a
text is worth beyond its probability is its caller's: a recogniser adds CTC's score and a bonus, and
:func:`search` asks a judge whether a text will have an attribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.decoding.method import Run
from zoo.decoding.sampling import check_logits
from zoo.decoding.session import Scores
from zoo.errors import ZooError


class Candidate(NamedTuple):
    """A text of a search, longer by one token.

    Attributes:
        row: which of the search's texts it goes on from.
        token: the new one.
        value: what the caller's totals say, a sum of logarithms.
    """

    row: int
    token: int
    value: float


class Found(NamedTuple):
    """A continuation that a search has found.

    Attributes:
        tokens: of it.
        score: what it is worth; the higher, the better.
        holds: whether it is as it was asked to be.
    """

    tokens: list[int]
    score: float
    holds: bool = True


class Beams:
    """The texts of one beam search: those that go on, and the best that has ended.

    Args:
        width: how many go on.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.texts: list[list[int]] = [[]]
        #: Of the texts that go on, as :meth:`keep` was told.
        self.values = [0.0]
        self.best: Found | None = None

    def propose(self, totals: Tensor, count: int) -> list[Candidate]:
        """The best longer texts.

        Args:
            totals: ``[N, V]``, of each text with each token; minus infinity rules one out.
            count: how many.
        """
        values, places = totals.flatten().topk(min(count, totals.numel()))
        size = totals.shape[1]
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        return [Candidate(p // size, p % size, v) for v, p in pairs if v > -math.inf]

    def longer(self, candidate: Candidate) -> list[int]:
        """A candidate's whole text."""
        return [*self.texts[candidate.row], candidate.token]

    def finish(self, text: list[int], score: float) -> None:
        """Enter a text that ends; of equal ones the first stays."""
        if self.best is None or score > self.best.score:
            self.best = Found(text, score)

    def keep(self, candidates: Sequence[Candidate]) -> None:
        """Go on with these."""
        self.texts = [self.longer(candidate) for candidate in candidates]
        self.values = [candidate.value for candidate in candidates]

    def settled(self, bound: float) -> bool:
        """Whether no text that goes on can end with more than the best has.

        Args:
            bound: at most so much can become of them.
        """
        return not self.texts or (self.best is not None and bound <= self.best.score)


class Judge(NamedTuple):
    """What is asked of texts besides their probability.

    Attributes:
        promise: the target's last states ``[n, d]`` after texts that go on, and how many tokens
            each of them has, to logarithms of the probability ``[n]`` that it will be as it is
            asked to be.
        holds: whether a text that is over is; its tokens, and whether a stop token or string ended
            it.
    """

    promise: Callable[[Tensor, Sequence[int]], Tensor]
    holds: Callable[[Sequence[int], bool], bool]


def log_probs(
    run: Run, logits: Tensor, numbers: Sequence[int], texts: Sequence[list[int]]
) -> Tensor:
    """What may follow texts, ``[n, V]``, in float32 on the CPU.

    Of the sampler's distribution, or, where it is greedy, of the target's own at temperature 1.

    Args:
        run: of which the constraints hold.
        logits: ``[n, V]`` of the target.
        numbers: which sequence of the call each text belongs to.
        texts: the new tokens.
    """
    if run.constraints:
        whole = [run.sequences[n] + text for n, text in zip(numbers, texts, strict=True)]
        logits = run.constraints.after(logits, whole, numbers)
    ruled_out = check_logits(logits, "the target")
    if run.sampler.greedy:
        result = logits.float().log_softmax(-1)
    else:
        result = run.sampler.probs(logits).log()
    return result.masked_fill(ruled_out[:, None], -math.inf).cpu()


class _Search:
    """The search of one sequence, and which rows of the target's session are its texts."""

    def __init__(self, number: int, width: int) -> None:
        self.number, self.beams, self.rows = number, Beams(width), [number]
        #: The likeliest text that is not as it is asked to be.
        self.other = Beams(1)
        self.candidates: list[Candidate] = []
        self.over: list[bool] = []

    def found(self) -> Found:
        """The best text, or the likeliest where none is as it was asked to be."""
        for beams, holds in ((self.beams, True), (self.other, False)):
            if beams.best is not None:
                return beams.best._replace(holds=holds)
        raise ZooError(
            "the search has found no text: processors, bad words and suppressed tokens rule all "
            "tokens out"
        )


def search(run: Run, first: Scores, width: int, judge: Judge | None = None) -> list[Found]:
    """The likeliest continuation of each sequence that a beam of this width finds.

    Scores are not normalised by length. A text that a token, a string or the limit ends must be
    among the ``width`` best of its step to count. With a judge the value of a text is ``log p(text)
    + log q(attribute | text)``, and the target reads twice as many candidates as go on, from whose
    states the judge tells q (a stop token more, and it is once more as many).

    Args:
        run: its target has read the sequences, and is of no use afterwards.
        first: what the target says after them, with its last states if there is a judge.
        width: texts that are followed at once.
        judge: what else is asked of a text.
    """
    searches = [_Search(number, width) for number in range(len(run.sequences))]
    said = log_probs(run, first.logits[:, -1], range(len(searches)), [[]] * len(searches))
    active = searches
    while active:
        for one in active:
            totals = torch.tensor(one.beams.values)[:, None] + said[one.rows]
            one.candidates = one.beams.propose(totals, width * max(2, 1 + len(run.stop.tokens)))
            one.over = [_over(run, one, candidate) for candidate in one.candidates]
        if judge is None:
            for one in active:
                _choose(run, one, [c.value for c in one.candidates], None)
        else:
            scores = _read(run, active, judged=True)
            _judge(run, active, scores, judge)
        active = [one for one in active if one.beams.texts]
        if not active:
            break
        if judge is None:
            said = _said(run, active, _read(run, active))
        else:
            # those that go on have been read
            run.target.select([row for one in active for row in one.rows])
            kept = [row for one in active for row in one.rows]
            said = _said(run, active, Scores(scores.logits[kept], None))
        row = 0
        for one in active:
            one.rows = list(range(row, row + len(one.beams.texts)))
            row += len(one.rows)
    return [one.found() for one in searches]


def _over(run: Run, one: _Search, candidate: Candidate) -> bool:
    text = one.beams.longer(candidate)
    return len(text) >= run.limit or run.stop.ends(run.sequences[one.number] + text)


def _read(run: Run, active: Sequence[_Search], judged: bool = False) -> Scores:
    """Let the target read the newest tokens: of the texts that go on, or of all candidates."""
    rows, tokens = [], []
    for one in active:
        if judged:
            going = [c for c, over in zip(one.candidates, one.over, strict=True) if not over]
            rows += [one.rows[c.row] for c in going]
            tokens += [[c.token] for c in going]
        else:
            rows += one.rows
            tokens += [[text[-1]] for text in one.beams.texts]
    if not rows:
        return Scores(torch.empty(0), None)
    run.target.select(rows)
    return run.target.advance(tokens, -1 if judged else None)


def _said(run: Run, active: Sequence[_Search], scores: Scores) -> Tensor:
    texts = [text for one in active for text in one.beams.texts]
    numbers = [one.number for one in active for _ in one.beams.texts]
    return log_probs(run, scores.logits[:, -1], numbers, texts)


def _judge(run: Run, active: Sequence[_Search], scores: Scores, judge: Judge) -> None:
    """Choose among candidates that the target has read."""
    lengths = [len(one.beams.texts[0]) + 1 for one in active for over in one.over if not over]
    promises = iter(())
    if lengths:
        promises = iter(judge.promise(scores.hidden[:, -1], lengths).tolist())
    row = 0
    for one in active:
        values, rows = [], []
        for candidate, over in zip(one.candidates, one.over, strict=True):
            if not over:
                values.append(candidate.value + next(promises))
                rows.append(row)
                row += 1
                continue
            text = one.beams.longer(candidate)
            ended = run.stop.ends(run.sequences[one.number] + text)
            fits = judge.holds(text, ended)
            if not fits:
                one.other.finish(text, candidate.value)
            values.append(candidate.value if fits else -math.inf)
            rows.append(-1)
        _choose(run, one, values, rows)


def _choose(run: Run, one: _Search, values: Sequence[float], read: Sequence[int] | None) -> None:
    """Enter the candidates that are over and among the best; go on with the best others.

    Args:
        run: the run.
        one: the search.
        values: of its candidates.
        read: rows of the session that have read them; None: those they go on from are meant.
    """
    beams, kept = one.beams, []
    order = sorted(range(len(values)), key=lambda place: -values[place])
    for rank, place in enumerate(order):
        candidate = one.candidates[place]
        if values[place] == -math.inf:
            break
        if not one.over[place]:
            kept += [place] if len(kept) < beams.width else []
        elif rank < beams.width:
            beams.finish(beams.longer(candidate), candidate.value)
    # a text only becomes less likely, and no promise is more than certain
    bound = max((one.candidates[place].value for place in kept), default=-math.inf)
    one.rows = [one.rows[one.candidates[p].row] if read is None else read[p] for p in kept]
    beams.keep([one.candidates[place] for place in kept])
    if beams.settled(bound):
        beams.texts = []
