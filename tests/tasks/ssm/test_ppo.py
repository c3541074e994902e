"""PPO: advantages, the loss by hand, experience in a checkpoint, what is refused."""

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F

from zoo.data.ssm.episodes import Episodes
from zoo.errors import ZooError
from zoo.tasks.optimization import OptimizerSettings
from zoo.tasks.ssm.ppo import PPO, Rollout, generalised_advantages

TINY = {"d_model": 8, "d_hidden": 8, "ssm_size": 8, "n_layers": 1}
SGD = OptimizerSettings("sgd", lr=0.0, lr_batch_size=None, weight_decay=0.0)


def task(**settings):
    torch.manual_seed(0)
    model_args = TINY | settings.pop("model_args", {})
    return PPO("s5_rl_popgym", model_args, steps=60, epochs=2, optimizer=SGD, **settings)


def data(**settings):
    return Episodes(
        **{"envs": 4, "batch_size": 2, "val_episodes": 2, "test_episodes": 3} | settings
    )


def trainer(epochs=1, **settings):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **settings,
    )  # fmt: skip


def test_advantages_are_sums_of_what_follows():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, generator=generator), torch.randn(2, 7, generator=generator)
    ended = torch.zeros(2, 6, dtype=torch.bool)
    ended[0, 2] = ended[1, 5] = True
    gamma = 0.9
    found = generalised_advantages(rewards, values, ended, gamma, 1.0) + values[:, :-1]
    for n, t in ((0, 0), (0, 2), (0, 3), (1, 1), (1, 5)):
        stop = next((s for s in range(t, 6) if ended[n, s]), None)
        last = 5 if stop is None else stop
        total = sum(gamma ** (s - t) * rewards[n, s] for s in range(t, last + 1))
        total = total + (0 if stop is not None else gamma ** (6 - t) * values[n, 6])
        torch.testing.assert_close(found[n, t], total)
    short = generalised_advantages(rewards, values, ended, gamma, 0.0)
    torch.testing.assert_close(short[0, 0], rewards[0, 0] + gamma * values[0, 1] - values[0, 0])
    torch.testing.assert_close(short[0, 2], rewards[0, 2] - values[0, 2])


def test_a_rollout_is_what_the_policy_would_do_again():
    module, episodes = task(), data()
    trainer().fit(module, datamodule=episodes)
    kept = module.rollout
    answer = module.model(kept.obs, kept.done, kept.memory)
    policy = module.model.policy(answer.actor)
    torch.testing.assert_close(policy.log_prob(kept.actions), kept.log_probs)
    torch.testing.assert_close(answer.value, kept.values)
    assert kept.done.sum(1).tolist() == [2] * 4  # the first step, and one inside
    assert len(module.returns) == 1 and -1 <= module.returns[0] <= 1
    # it goes on: what was carried is where the next one starts
    later = module.collect(1)
    torch.testing.assert_close(later.memory, answer.memory)
    assert torch.equal(
        kept.obs[:, 1:, 4:8], F.one_hot(kept.actions[:, :-1], 4) * ~kept.done[:, 1:, None]
    )
    assert not torch.equal(later.actions, kept.actions)


def test_the_loss_by_hand():
    module = task(clip=0.2, value_weight=0.7, entropy_weight=0.1)
    trainer().fit(module, datamodule=data())
    kept = module.rollout
    generator = torch.Generator().manual_seed(3)
    moved = {
        "log_probs": kept.log_probs + 0.4 * torch.randn(kept.values.shape, generator=generator),
        "values": kept.values + 0.4 * torch.randn(kept.values.shape, generator=generator),
    }
    module.rollout = kept._replace(**moved)
    rows = torch.tensor([2, 0])
    found = module.training_loss({"env": rows})
    part = module.rollout.of(rows)
    answer = module.model(part.obs, part.done, part.memory)
    logits = answer.actor.log_softmax(-1)
    total = 0.0
    advantages = (part.advantages - part.advantages.mean()) / part.advantages.std(correction=0)
    for n in range(2):
        for t in range(60):
            chosen, a = logits[n, t, part.actions[n, t]], advantages[n, t]
            ratio = (chosen - part.log_probs[n, t]).exp()
            allowed = 1.2 if a > 0 else 0.8
            bounded = min(ratio, allowed) if a > 0 else max(ratio, allowed)
            target = part.advantages[n, t] + part.values[n, t]
            old, new = part.values[n, t], answer.value[n, t]
            near = old + max(-0.2, min(0.2, float(new - old)))
            error = max((new - target) ** 2, (near - target) ** 2)
            entropy = -(logits[n, t].exp() * logits[n, t]).sum()
            total += float(-bounded * a + 0.7 * 0.5 * error - 0.1 * entropy)
    assert float(found.detach()) == pytest.approx(total / 120, rel=1e-4)


def test_experience_goes_through_a_checkpoint(tmp_path):
    module = task()
    run = trainer()
    run.fit(module, datamodule=data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    other = task()
    other.load_state_dict(checkpoint["state_dict"])
    fresh = data()
    resumed = trainer(max_steps=0)
    resumed.fit(other, datamodule=fresh)
    other.on_load_checkpoint(checkpoint)
    other.restore_experience()
    same = [*module.rollout.memory, *module.rollout[1:]]
    for mine, theirs in zip([*other.rollout.memory, *other.rollout[1:]], same, strict=True):
        assert torch.equal(mine, theirs)
    assert other.rollout_number == module.rollout_number == 0
    for mine, theirs in zip(other.collect(1)[1:], module.collect(1)[1:], strict=True):
        assert torch.equal(mine, theirs)
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del weights["optimizer_states"], weights["experience"]
    module.on_save_checkpoint(weights)
    assert "experience" not in weights, "weights alone are no run to go on with"


@pytest.mark.parametrize("env", ["RepeatFirstEasy", "Pendulum-v1"])
def test_test_plays_each_episode_once(env):
    episodes = data(env=env)
    shape = {name: getattr(episodes, name) for name in ("d_obs", "n_actions", "continuous")}
    module = task(model_args=shape)
    scores = trainer().test(module, datamodule=episodes, verbose=False)[0]
    lengths = {"RepeatFirstEasy": 52, "Pendulum-v1": 200}
    assert [len(rewards) for rewards in module.shown] == [lengths[env]] * 3
    assert scores["test/episode_return"] == pytest.approx(
        sum(float(r.sum()) for r in module.shown) / 3
    )
    assert set(module.figures()) == {"episodes"}
    again = trainer().test(module, datamodule=episodes, verbose=False)[0]
    assert again == scores


def test_wrong_settings():
    with pytest.raises(ZooError, match=r"gamma is 1.5, expected 0 to 1"):
        task(gamma=1.5)
    with pytest.raises(ZooError, match=r"d_obs 7.*built with 9.*model_args.d_obs to 7"):
        task().check_data(data(env="CartPole-v1"))
    with pytest.raises(ZooError, match=r"n_actions 2.*model_args.n_actions to 2"):
        task(model_args={"d_obs": 7}).check_data(data(env="CartPole-v1"))
    with pytest.raises(ZooError, match="sashimi is no policy, it lacks d_obs"):
        PPO("sashimi", {"d_model": 4, "n_layers": 1})
    assert Rollout._fields[0] == "memory"
