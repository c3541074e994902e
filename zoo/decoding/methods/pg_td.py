"""Planning-guided decoding: a tree search over tokens, whose rewards are test cases passed.

Paper: Planning with Large Language Models for Code Generation (ICLR 2023, arXiv 2303.05510). Rules
are those of shunzh/Code-AI-Tree-Search at d075c68. The text is not the target's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zoo.decoding.beam import Found
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.programs import TestCases
from zoo.decoding.session import Scores
from zoo.decoding.tree import PADDING, ROOT
from zoo.decoding.whole_texts import WholeTextMethod
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_tokenizer

Tokens = tuple[int, ...]
#: Worth of a continuation, from 0 to 1.
Reward = Callable[[list[int]], float]


@dataclass
class Action:
    """A token after a state (a chance node of the paper).

    Attributes:
        token: what is said.
        prior: probability among the few that are tried.
        best, returns: the highest return so far, and how many there were.
        state: where it leads, once that was expanded.
    """

    token: int
    prior: float
    best: float = 0.0
    returns: int = 0
    state: State | None = None


@dataclass
class State:
    """A continuation so far (a decision node).

    Attributes:
        tokens: of the continuation.
        actions: the likeliest next tokens, the best first.
        visits: one when it is made, and one for each return.
    """

    tokens: Tokens
    actions: list[Action]
    visits: int = 1


class Reader:
    """One sequence of a run, read along many continuations.

    What was read is found again: the likeliest tokens behind every beginning of a continuation, and
    so every continuation that was finished greedily (both caches of the paper).

    Args:
        run: of the call.
        row: which sequence.
        first: ``[V]``, what the target says after it.
        width: likeliest tokens that are kept of each place.
        nodes: numbers the nodes of the target's open tree.
        cache: False reads everything anew each time.

    Attributes:
        calls: how often the target was asked for the tokens after a state, or for the end of a
            continuation, and had to read.
    """

    def __init__(
        self,
        run: Run,
        row: int,
        first: Tensor,
        width: int,
        nodes: Iterator[int],
        cache: bool = True,
    ) -> None:
        self.run, self.row, self.first = run, row, first
        self.width, self.cache = width, cache
        self.calls = 0
        self._numbers = nodes
        self._nodes: dict[Tokens, int] = {}
        self._likeliest: dict[Tokens, tuple[list[int], list[float]]] = {}

    def after(self, tokens: Tokens) -> tuple[list[int], list[float]]:
        """The likeliest tokens after a continuation, and their probabilities among each other."""
        self._begin()
        self.calls += tokens not in self._likeliest
        return self._read(tokens)

    def finish(self, tokens: Tokens, over: Callable[[Tokens], bool]) -> Tokens:
        """A continuation with its greedy end."""
        self._begin()
        known = len(self._likeliest)
        while not over(tokens):
            tokens = (*tokens, self._read(tokens)[0][0])
        self.calls += len(self._likeliest) > known
        return tokens

    def _begin(self) -> None:
        if not self.cache:
            self._nodes.clear()
            self._likeliest.clear()

    def _read(self, tokens: Tokens) -> tuple[list[int], list[float]]:
        """Let the target read what it has not of a continuation; what follows it."""
        for length in range(len(tokens) + 1):
            part = tokens[:length]
            if part not in self._likeliest:
                logits = self._grow(part)
                values, places = logits.topk(min(self.width, len(logits)))
                self._likeliest[part] = (places.tolist(), values.float().softmax(-1).tolist())
        return self._likeliest[tokens]

    def _grow(self, part: Tokens) -> Tensor:
        target, sequence = self.run.target, self.run.sequences[self.row]
        if not part:
            return self.run.constrained(self.first[None], [sequence], [self.row])[0]
        shape = (len(self.run.sequences), 1)
        tokens = torch.zeros(shape, dtype=torch.long, device=target.device)
        parents = torch.full_like(tokens, PADDING)
        tokens[self.row] = part[-1]
        parents[self.row] = self._nodes[part[:-1]] if len(part) > 1 else ROOT
        self._nodes[part] = next(self._numbers)
        logits = target.grow(tokens, parents).logits[self.row]  # [1, V]
        return self.run.constrained(logits, [[*sequence, *part]], [self.row])[0]


@register_method
class PGTD(WholeTextMethod):
    """Monte-Carlo tree search: follow the best path, try one more token, finish greedily, and test.

    Args:
        tests: test cases, or their file in the layout of APPS; half of them are public and judge
            the search, and how the answer passes the others is reported.
        tokenizer: turns a continuation into a program, or where it is found; by default that beside
            the target.
        reward: judges continuations in place of test cases.
        rollouts: most rounds of the search.
        max_calls: the search ends when the target was asked more often.
        width: tokens that are tried after a state.
        c, c_base: weight of exploring, and how it grows with visits.
        alg: ``var_p_uct`` (the paper's), ``p_uct`` with a constant weight, ``uct`` without priors.
        early_stop: end with the first program that passes all.
        cache: False reads everything anew, which changes nothing but the cost.
        public: how many of the cases are public; by default half of them.
    """

    name = "pg_td"
    proposer = "nobody: a tree search with test cases"
    needs = (Need("tests", "--set pg_td.tests=FILE"),)

    def __init__(
        self,
        tests: TestCases | str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        reward: Reward | None = None,
        rollouts: int = 16,
        max_calls: int = 768,
        width: int = 3,
        c: float = 4.0,
        c_base: float = 10.0,
        alg: Literal["var_p_uct", "p_uct", "uct"] = "var_p_uct",
        early_stop: bool = True,
        cache: bool = True,
        public: int | None = None,
    ) -> None:
        if (tests is None) == (reward is None):
            raise ZooError("pg_td needs either tests or a reward: give one of them")
        if rollouts < 1 or max_calls < 1 or width < 1 or not c >= 0 or not c_base > 0:
            raise ZooError(
                f"rollouts {rollouts}, max_calls {max_calls}, width {width}, c {c}, c_base "
                f"{c_base}: expected 1 or more of the first three, no negative weight"
            )
        if alg not in ("var_p_uct", "p_uct", "uct"):
            raise ZooError(f"alg is {alg!r}: expected var_p_uct, p_uct or uct")
        self.tokenizer, self._reward, self._private = tokenizer, reward, None
        if tests is not None:
            cases = tests if isinstance(tests, TestCases) else TestCases.read(tests)
            self._public, self._private = cases.split(public)
            if not self._public.inputs:
                raise ZooError("no test case is public, so that nothing judges the search")
        self.rollouts, self.max_calls, self.width = rollouts, max_calls, width
        self.c, self.c_base, self.alg = c, c_base, alg
        self.early_stop, self.keeps = early_stop, cache

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The setting whose text is the target's own: one way to go on, and nothing to explore."""
        return {"": cls(reward=lambda tokens: 0.0, width=1, c=0.0, rollouts=2)}

    def load(self, model: nn.Module) -> None:
        """Find the tokenizer."""
        if self._reward is None and isinstance(self.tokenizer, str | None):
            self.tokenizer = load_tokenizer(self.tokenizer or getattr(model, "name_or_path", ""))

    def program(self, tokens: Sequence[int]) -> str:
        """The text of a continuation."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[union-attr]

    def judge(self, tokens: Tokens) -> float:
        """The reward of a whole continuation, from 0 to 1."""
        if self._reward is not None:
            return self._reward(list(tokens))
        return self._public.pass_rate(self.program(tokens))

    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """Search for each sequence in turn."""
        nodes, found = count(), []
        self.searches = []
        for row, logits in enumerate(first.logits[:, -1]):
            search = Search(self, Reader(run, row, logits, self.width, nodes, self.keeps), run)
            search.go()
            self.searches.append(search)
            every = [Found(list(tokens), reward) for tokens, reward in search.rewards.items()]
            found.append(sorted(every, key=lambda f: -f.score))  # of equal ones the first
        run.target.commit([[]] * len(run.sequences))
        return found

    def report(self) -> dict[str, float]:
        """Means over the sequences: reward of the answer, share of private cases that it passes,
        calls of the target, whole continuations and rounds."""
        size = len(self.searches)
        values = {
            "reward": sum(found[0].score for found in self.found) / size,
            "target_calls": sum(search.reader.calls for search in self.searches) / size,
            "continuations": sum(len(search.rewards) for search in self.searches) / size,
            "rollouts": sum(search.rounds for search in self.searches) / size,
        }
        if self._private is not None and self._private.inputs:
            rates = [self._private.pass_rate(self.program(found[0].tokens)) for found in self.found]
            values["private_pass_rate"] = sum(rates) / size
        return values


class Search:
    """The tree of one sequence.

    Attributes:
        rewards: of all whole continuations, in the order in which they were found.
        rounds: of the search so far.
    """

    def __init__(self, method: PGTD, reader: Reader, run: Run) -> None:
        self.method, self.reader = method, reader
        self.limit, self.stop = run.limit, run.stop_tokens
        self.rewards: dict[Tokens, float] = {}
        self.rounds = 0

    def over(self, tokens: Tokens) -> bool:
        """Whether a continuation is whole."""
        return len(tokens) >= self.limit or (bool(tokens) and tokens[-1] in self.stop)

    def go(self) -> None:
        """Search until a budget is spent."""
        self.root, method = self._state(()), self.method
        while self.rounds < method.rollouts and self.reader.calls <= method.max_calls:
            self._round()
            self.rounds += 1
            if method.early_stop and max(self.rewards.values(), default=0.0) >= 1:
                break

    def _state(self, tokens: Tokens) -> State:
        # as the authors do, also where nothing can follow
        said, priors = self.reader.after(tokens)
        return State(tokens, [Action(t, p) for t, p in zip(said, priors, strict=True)])

    def _round(self) -> None:
        """Select, expand, evaluate, and give the return to all that led there."""
        state, path = self.root, []
        while not self.over(state.tokens):
            # of equal ones the first, which is the likeliest
            action = max(state.actions, key=lambda a: self._worth(a, state.visits))
            path.append((state, action))
            if action.state is None:
                action.state = self._state((*state.tokens, action.token))
                state = action.state
                break
            state = action.state
        gained = self._judged(self.reader.finish(state.tokens, self.over))
        for state, action in path:
            state.visits += 1
            action.best = max(action.best, gained)
            action.returns += 1

    def _worth(self, action: Action, visits: int) -> float:
        """Best return so far, and how much there may be to find (P-UCB)."""
        method = self.method
        weight = method.c
        if method.alg == "var_p_uct":
            weight += math.log((visits + method.c_base + 1) / method.c_base)
        if method.alg != "uct":
            weight *= action.prior
        return action.best + weight * math.sqrt(math.log(visits)) / (1 + action.returns)

    def _judged(self, tokens: Tokens) -> float:
        if tokens not in self.rewards:
            self.rewards[tokens] = self.method.judge(tokens)
        return self.rewards[tokens]
