"""PG-TD: the rules of the search, its caches, and programs that are tested."""

from __future__ import annotations

import math

import pytest
import torch

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate
from zoo.decoding.methods.pg_td import PGTD, Action
from zoo.errors import ZooError


def wanted(tokens: list[int]) -> float:
    """Worth by what a greedy text would hardly have."""
    return sum(token % 5 == 0 for token in tokens) / len(tokens)


def by_definition(model, begun: list[int], new: int) -> dict[tuple[int, ...], float]:
    """Rewards of all programs that ten rounds find, over full passes."""

    def top(text: tuple[int, ...]) -> list[tuple[int, float]]:
        logits = model(input_ids=torch.tensor([begun + list(text)])).logits[0, -1]
        values, tokens = logits.topk(3)
        return list(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))

    visits: dict[tuple[int, ...], int] = {(): 1}
    returns: dict[tuple[int, ...], list[float]] = {}
    rewards: dict[tuple[int, ...], float] = {}

    def worth(state: tuple[int, ...], token: int, prior: float) -> float:
        got = returns.get((*state, token), [])
        weight = 4 + math.log((visits[state] + 11) / 10)
        rest = math.sqrt(math.log(visits[state])) / (1 + len(got))
        return max(got, default=0.0) + weight * prior * rest

    for _ in range(10):
        state: tuple[int, ...] = ()
        path = []
        while len(state) < new:
            worths = [(worth(state, token, prior), token) for token, prior in top(state)]
            best = max(value for value, _ in worths)
            state = (*state, next(token for value, token in worths if value == best))
            path.append(state)
            if state not in visits:
                visits[state] = 1
                break
        whole = state
        while len(whole) < new:
            whole = (*whole, top(whole)[0][0])
        rewards.setdefault(whole, wanted(list(whole)))
        for state in path:
            returns.setdefault(state, []).append(rewards[whole])
            visits[state[:-1]] += 1
    return rewards


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
@torch.no_grad()
def test_the_search_by_plain_recursion_over_full_passes(kind: str) -> None:
    model, new = make_model(kind), 5
    ids = torch.randint(1, VOCAB, (2, 4), generator=torch.Generator().manual_seed(0))
    method = PGTD(reward=wanted, rollouts=10, early_stop=False)
    out = generate(model, ids, method, max_new_tokens=new, stop_tokens=())
    for row in range(2):
        rewards = by_definition(model, ids[row].tolist(), new)
        assert method.searches[row].rewards == rewards
        best = max(rewards.values())
        assert out.new_tokens[row] == list(next(t for t, r in rewards.items() if r == best))
    assert out.report["rollouts"] == 10
    assert out.report["reward"] > wanted(generate(model, ids, max_new_tokens=new).new_tokens[0])


def test_caches_change_nothing_but_the_calls() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    found = {}
    for cache in (True, False):
        method = PGTD(reward=wanted, rollouts=8, cache=cache, early_stop=False)
        generate(model, ids, method, max_new_tokens=5)
        found[cache] = (list(method.searches[0].rewards.items()), method.report()["target_calls"])
    assert found[True][0] == found[False][0]
    assert found[True][1] < 0.7 * found[False][1]


def test_budgets_ends_and_rules() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    plain = generate(model, ids, max_new_tokens=6).new_tokens[0]
    short = PGTD(reward=wanted, max_calls=2, rollouts=99)
    generate(model, ids, short, max_new_tokens=6)
    assert 2 < short.report()["target_calls"] <= 4
    ended = PGTD(reward=lambda tokens: 1.0, rollouts=99)
    out = generate(model, ids, ended, max_new_tokens=6, stop_tokens=[plain[2]])
    assert ended.searches[0].rounds == 1 and out.new_tokens[0] == plain[: plain.index(plain[2]) + 1]
    banned = generate(model, ids, PGTD(reward=wanted), max_new_tokens=6, bad_words_ids=[[plain[0]]])
    assert plain[0] not in banned.new_tokens[0]
    search = ended.searches[0]
    action = Action(3, prior=0.5, best=0.25, returns=1)
    for alg, weight in (("uct", 4), ("p_uct", 2), ("var_p_uct", (4 + math.log(1.5)) / 2)):
        ended.alg = alg
        expected = 0.25 + weight * math.sqrt(math.log(4)) / 2
        assert search._worth(action, 4) == pytest.approx(expected)
    for wrong in ({}, {"reward": wanted, "alg": "x"}, {"reward": wanted, "width": 0}):
        with pytest.raises(ZooError, match=r"reward|alg is|expected 1"):
            PGTD(**wrong)
