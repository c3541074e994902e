"""Environments: the rules of the two games, what a policy sees, and going back to a place."""

import numpy as np
import pytest
import torch

from zoo.data.ssm.episodes import Episodes
from zoo.data.synthetic.repeated_cards import DECK, GAMES, RepeatFirst, RepeatPrevious
from zoo.errors import ZooError


@pytest.mark.parametrize(("game", "back"), [(RepeatPrevious(2, k=3), 3), (RepeatFirst(1), None)])
def test_rules_of_the_games(game, back):
    """One who knows all cards gets 1, one who is always wrong -1."""
    for wrong in (0, 1):
        seen, _ = game.reset(seed=5)
        cards, rewards, over = [int(seen.argmax())], [], False
        while not over:
            asked = cards[0] if back is None else cards[-1 - back] if len(cards) > back else 0
            seen, reward, over, _, _ = game.step((asked + wrong) % 4)
            cards.append(int(seen.argmax()))
            rewards.append(reward)
        counts = np.bincount(cards[:-1])
        assert len(set(counts)) == 1 and counts.sum() == len(rewards)  # each suit as often
        if back is not None:
            assert rewards[:back] == [0] * back
            assert sum(rewards) == pytest.approx(1 - 2 * wrong)
        else:  # as published: each step counts, of the cards but one
            assert sum(rewards) == pytest.approx((1 - 2 * wrong) * DECK / (DECK - 1))
    shown = [game.reset(seed=seed)[0].argmax() for seed in range(20)]
    assert len(set(shown)) == 4 and game.reset(seed=3)[0].tolist() == game.reset(seed=3)[0].tolist()
    assert all(make(**settings).k >= 1 for make, settings in GAMES.values())


def play(players, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        if players.data.continuous:
            actions = 2 * torch.randn(len(players.seeds), 1, generator=generator)
        else:
            actions = torch.randint(4, (len(players.seeds),), generator=generator)
        found.append((players.obs, players.done, *players.step(actions), actions))
    return found


def test_what_a_policy_sees():
    data = Episodes(envs=3, batch_size=3)
    assert (data.d_obs, data.n_actions, data.continuous) == (9, 4, False)
    players = data.environments("train", range(3))
    steps = play(players, 2 * DECK + 1)
    ended = [t for t, step in enumerate(steps) if step[3]]
    assert ended == [DECK - 1, 2 * DECK - 1]
    for t, (obs, done, _, _, _) in enumerate(steps):
        assert obs[:, :4].sum(1).tolist() == [1, 1, 1]
        first = t % DECK == 0
        assert done.tolist() == obs[:, 8].bool().tolist() == [first] * 3
        previous = torch.zeros(3, 4)
        if not first:
            previous[torch.arange(3), steps[t - 1][4]] = 1
        assert torch.equal(obs[:, 4:8], previous)
    rewards = torch.stack([step[2] for step in steps[:DECK]], 1).sum(1)
    assert steps[DECK - 1][3] == pytest.approx(rewards.tolist(), abs=1e-6)
    # other cards in each copy, episode and split
    cards = torch.stack([step[0][:, :4].argmax(1) for step in steps[: 2 * DECK]], 1)
    rows = [*cards[:, :DECK], *cards[:, DECK:]]
    for split in ("val", "test"):
        rows += torch.stack(
            [step[0][:, :4].argmax(1) for step in play(data.environments(split, [0]), DECK)], 1
        )
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize("env", ["RepeatFirstEasy", "Pendulum-v1"])
def test_it_goes_on_from_a_record(env):
    data = Episodes(env, envs=2, batch_size=2)
    whole, parts = data.environments("train", [0, 1]), data.environments("train", [0, 1])
    play(whole, 60)
    play(parts, 60)
    record = parts.record()
    again = data.environments("train", [0, 1])
    again.restore(record)
    for mine, theirs in zip(play(whole, 60, seed=1), play(again, 60, seed=1), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_environments_of_gymnasium_and_wrong_ones():
    cartpole = Episodes("CartPole-v1")
    assert (cartpole.d_obs, cartpole.n_actions, cartpole.continuous) == (4 + 2 + 1, 2, False)
    pendulum = Episodes("Pendulum-v1")
    assert (pendulum.d_obs, pendulum.n_actions, pendulum.continuous) == (3 + 1 + 1, 1, True)
    with pytest.raises(ZooError, match=r"env RepeatLast with {} cannot be made"):
        Episodes("RepeatLast")
    with pytest.raises(ZooError, match=r"nowhere:Game-v0 with {} cannot be made"):
        Episodes("nowhere:Game-v0")
    with pytest.raises(ZooError, match=r"cannot be made.*unexpected keyword"):
        Episodes("RepeatFirstEasy", {"k": 3})
    with pytest.raises(ZooError, match="k of 1 to 52 decks - 1, got 1, 52"):
        Episodes(env_args={"k": 52})
    with pytest.raises(ZooError, match="envs is 0, expected 1 or more"):
        Episodes(envs=0)


def test_without_gymnasium(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ZooError, match=r"pip install 'ssm-zoo\[rl\]'"):
        Episodes()
