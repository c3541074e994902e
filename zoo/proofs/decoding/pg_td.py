"""PG-TD: small programs in reverse Polish notation, and a language model that half knows them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding import generate
from zoo.decoding.methods.pg_td import PGTD
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import METHODS

#: Tokens: x, three numbers, three operations, the end, and what a prompt is made of.
WORDS = ("x", "1", "2", "3", "+", "*", "-", "end", "begin")
END, BEGIN = 7, 8
#: Longest program, values of x, and how many of them are public.
LONGEST, VALUES, PUBLIC = 12, (-3, -1, 0, 2, 5, -2, 1, 4, 7), 5
#: Logits of the right next token above the others, and of tokens that cannot follow.
BONUS, WRONG = 2.5, -6.0
#: Whole programs that a search may try.
TRIES = 64


def depth(program: Sequence[int]) -> int:
    """Values on the stack behind a program; below 0 if it is none."""
    size = 0
    for token in program:
        size += 1 if token < 4 else -1
        if size < 1:
            return -1
    return size


def value(program: Sequence[int], x: int) -> int | None:
    """What a program answers; None if it has not ended with one value."""
    if not program or program[-1] != END or depth(program[:-1]) != 1:
        return None
    stack: list[int] = []
    for token in program[:-1]:
        if token < 4:
            stack.append(x if token == 0 else token)
            continue
        second, first = stack.pop(), stack.pop()
        stack.append(
            first + second if token == 4 else first * second if token == 5 else first - second
        )
    return stack[0]


def drawn_program(chance: random.Random) -> list[int]:
    """A program of four or five operands."""
    left, program = chance.choice((4, 5)), []
    while left or depth(program) > 1:
        if depth(program) < 2 or (left and chance.random() < 0.5):
            program.append(chance.randrange(4))
            left -= 1
        else:
            program.append(chance.randrange(4, 7))
    return [*program, END]


class HalfKnown(nn.Module):
    """Fixed random logits behind every beginning, with a bonus along one program.

    Args:
        program: that it half knows.
        seed: of the logits.
    """

    def __init__(self, program: list[int], seed: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=len(WORDS), hidden_size=1, num_hidden_layers=0, eos_token_id=END
        )
        self.program, self.seed = program, seed
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def after(self, text: tuple[int, ...]) -> Tensor:
        """Logits ``[V]`` behind a beginning of a program."""
        if text not in self._known:
            number = self.seed
            for token in text:
                number = (number * 31 + token + 1) % (2**61 - 1)
            logits = torch.randn(len(WORDS), generator=torch.Generator().manual_seed(number))
            size = depth(text) if text else 0
            logits[4:7] += WRONG * (size < 2)
            logits[END] += WRONG * (size != 1)
            logits[BEGIN] += 2 * WRONG
            if len(text) < len(self.program) and list(text) == self.program[: len(text)]:
                logits[self.program[len(text)]] += BONUS
            self._known[text] = logits
        return self._known[text]

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits ``[B, T, V]``."""
        rows = []
        for row in input_ids.tolist():
            begun = [place for place, token in enumerate(row) if token == BEGIN]
            first = begun[-1] + 1 if begun else 0
            rows.append(
                torch.stack([self.after(tuple(row[first : n + 1])) for n in range(len(row))])
            )
        return SimpleNamespace(logits=torch.stack(rows))


class Synthesis(Measurement):
    """Programs from five pairs of x and answer, judged by four others.

    Measures the shares of problems that are solved, all private pairs right, by the search
    (``pg_td``), the best of as many samples of the three likeliest tokens by public pairs
    (``sampling``), ``beam`` search of width 5 and ``greedy`` decoding; ``calls_saved`` of the
    language model by the caches, and whether they changed what was found, ``cache_changes``; and
    whether one way without exploring is the greedy text, ``greedy_is_plain``.

    Args:
        texts: how many problems.
    """

    def __init__(self, texts: int = 60) -> None:
        self.texts = texts

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Solve with each."""
        chance = random.Random(seed)
        solved = dict.fromkeys(("pg_td", "sampling", "beam", "greedy"), 0.0)
        calls, changed, plain, tried = [0.0, 0.0], 0.0, 1.0, []
        begun = torch.tensor([[BEGIN, BEGIN]])
        for problem in range(self.texts):
            program = drawn_program(chance)
            model = HalfKnown(program, chance.randrange(2**40))

            def passed(text: Sequence[int], private: bool = False, right=program) -> float:
                values = VALUES[PUBLIC:] if private else VALUES[:PUBLIC]
                return sum(value(text, x) == value(right, x) for x in values) / len(values)

            def search(model: nn.Module = model, **options: Any) -> PGTD:
                method = PGTD(reward=passed, rollouts=TRIES, **options)
                generate(model, begun, method, max_new_tokens=LONGEST)
                return method

            method = search()
            tried.append(method.report()["continuations"])
            greedy = generate(model, begun, max_new_tokens=LONGEST).new_tokens[0]
            answers = {
                "pg_td": method.found[0][0].tokens,
                "sampling": max(_samples(model, chance), key=passed),
                "beam": _beam(model, 5),
                "greedy": greedy,
            }
            for name, text in answers.items():
                solved[name] += (passed(text, private=True) == 1) / self.texts
            if problem < 8:
                anew = search(cache=False)
                calls[0] += method.report()["target_calls"]
                calls[1] += anew.report()["target_calls"]
                changed += method.searches[0].rewards != anew.searches[0].rewards
                one = search(width=1, c=0.0)
                plain *= one.found[0][0].tokens == greedy
        axes = Axes("Problems solved", "whole programs that were tried", "share of problems")
        points = {"pg_td": sum(tried) / len(tried), "sampling": TRIES, "beam": 5, "greedy": 1}
        return Measured(
            solved
            | {
                "continuations": points["pg_td"],
                "calls_saved": 1 - calls[0] / calls[1],
                "cache_changes": changed,
                "greedy_is_plain": plain,
            },
            [
                Curve(axes, [points[name]], [share], name.replace("pg_td", "PG-TD"), "points")
                for name, share in solved.items()
            ],
        )


def _samples(model: HalfKnown, chance: random.Random) -> list[tuple[int, ...]]:
    """Programs by draws from the three likeliest tokens."""
    found = []
    for _ in range(TRIES):
        text: tuple[int, ...] = ()
        while len(text) < LONGEST and (not text or text[-1] != END):
            values, tokens = model.after(text).topk(3)
            text = (*text, chance.choices(tokens.tolist(), values.softmax(-1).tolist())[0])
        found.append(text)
    return found


def _beam(model: HalfKnown, width: int) -> tuple[int, ...]:
    """The likeliest program that a beam search finds."""
    going: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        grown = [
            (score + float(part), (*text, token))
            for score, text in going
            for token, part in enumerate(model.after(text).log_softmax(-1))
        ]
        ended += [pair for pair in grown if pair[1][-1] == END]
        going = sorted((p for p in grown if p[1][-1] != END), key=lambda p: -p[0])[:width]
    return max([*ended, *going])[1]
