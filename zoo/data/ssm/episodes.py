"""Environments that a policy acts in, episode by episode, through the package gymnasium."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.base import DataModule, Source, at_least
from zoo.errors import ZooError

_SPLITS = ("train", "val", "test")


class Episodes(DataModule):
    """Copies of an environment to learn in, and episodes to be measured by.

    What a policy sees of a step is the observation, the action before it (one-hot, or as it is) and
    whether the step is the first of its episode (AliasPrevActionV2 of the authors of S5-RL). The
    cards of an episode, or whatever else an environment draws, depend on the seed, the copy and the
    episode's number alone.

    A training sample is one of the copies, ``env``; one for evaluation is an episode, ``episode``.

    Args:
        env: RepeatPreviousEasy, -Medium or -Hard, RepeatFirstEasy, -Medium or -Hard (see
            :mod:`zoo.data.synthetic.repeated_cards`), or what gymnasium knows by a name, such as
            ``CartPole-v1``, or ``popgym:popgym-RepeatPreviousEasy-v0`` where POPGym is installed.
        env_args: arguments of the environment.
        envs: copies.
        val_episodes, test_episodes: to be measured by, always the same.
        kwargs: see :class:`DataModule`; the batch is of copies.

    Attributes:
        d_obs: features of what the policy sees.
        n_actions: number of actions, or of their dimensions if they are ``continuous``.

    Raises:
        ZooError: gymnasium is not installed, knows no such environment, or its observations or
            actions are of a kind that is not read.
    """

    def __init__(
        self,
        env: str = "RepeatPreviousEasy",
        env_args: dict[str, Any] | None = None,
        envs: int = 64,
        val_episodes: int = 32,
        test_episodes: int = 64,
        **kwargs: Any,
    ) -> None:
        if importlib.util.find_spec("gymnasium") is None:
            raise ZooError("environments need gymnasium: pip install 'ssm-zoo[rl]'")
        super().__init__(**kwargs)
        at_least(1, envs=envs, val_episodes=val_episodes, test_episodes=test_episodes)
        self.env, self.env_args = env, env_args or {}
        self.sizes = dict(zip(_SPLITS, (envs, val_episodes, test_episodes), strict=True))
        one = self.make()
        self.continuous, self.n_actions = _actions(one.action_space, env)
        self.d_obs = one.observation_space.shape[0] + self.n_actions + 1
        one.close()

    def make(self) -> Any:
        """A copy of the environment, a gymnasium.Env whose observations are vectors."""
        import gymnasium

        from zoo.data.synthetic.repeated_cards import GAMES

        try:
            if self.env in GAMES:
                game, settings = GAMES[self.env]
                made: Any = game(**settings | self.env_args)
            else:
                made = gymnasium.make(self.env, **self.env_args)
            return gymnasium.wrappers.FlattenObservation(made)
        except (gymnasium.error.Error, ImportError, TypeError, NotImplementedError) as error:
            raise ZooError(
                f"data.init_args.env {self.env} with {self.env_args} cannot be made "
                f"({' '.join(str(error).split())}), expected one of {', '.join(GAMES)} or a name "
                "that gymnasium knows"
            ) from error

    def load(self, split: str) -> Source:
        """Numbers of the copies, or of the episodes."""
        return range(self.sizes[split])

    def train_transform(self, sample: int) -> dict[str, int]:
        """One of the copies."""
        return {"env": sample}

    def eval_transform(self, sample: int) -> dict[str, int]:
        """An episode; the validation's are other ones than the test's."""
        return {"episode": sample}

    def environments(self, split: str, numbers: Sequence[int]) -> Environments:
        """Copies, by their numbers, at the start of their first episodes."""
        return Environments(self, [(self.seed, _SPLITS.index(split), i) for i in numbers])


class Environments:
    """Several environments, each in an episode of its own; where one ends the next one begins.

    Args:
        data: makes them.
        seeds: of each.

    Attributes:
        obs: what the policy sees now, ``[N, data.d_obs]``.
        done: bool ``[N]``: the step before was the last of an episode.
    """

    obs: Tensor
    done: Tensor

    def __init__(self, data: Episodes, seeds: Sequence[tuple[int, ...]]) -> None:
        import gymnasium

        self.data, self.seeds = data, seeds
        self.vector = gymnasium.vector.SyncVectorEnv(
            [data.make] * len(seeds), autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED
        )
        self.restore({"episodes": [0] * len(seeds), "actions": [[] for _ in seeds]})

    def step(self, actions: Tensor) -> tuple[Tensor, list[float]]:
        """Act: int64 ``[N]``, or ``[N, A]`` of continuous ones, which are cut to what is allowed.

        Returns:
            rewards ``[N]``, and the sums of rewards of episodes that have ended.
        """
        given = actions.numpy()
        if self.data.continuous:
            space = self.vector.single_action_space
            given = np.clip(given, space.low, space.high).astype(space.dtype)
        seen, rewards, terminated, truncated, _ = self.vector.step(given)
        ended = terminated | truncated
        self.returns += rewards
        finished = self.returns[ended].tolist()
        for i, done in enumerate(ended):
            self.episodes[i] += int(done)
            self.actions[i] = [] if done else [*self.actions[i], given[i].tolist()]
        if ended.any():
            self.returns[ended] = 0
            seeds = [self._seed(i) for i in range(len(ended))]
            seen, _ = self.vector.reset(seed=seeds, options={"reset_mask": ended})
        self._see(seen, torch.from_numpy(given), torch.from_numpy(ended))
        return torch.from_numpy(rewards).float(), finished

    def record(self) -> dict[str, list[Any]]:
        """Where they are, as plain values: the number of the episode of each, and what was done in
        it."""
        return {"episodes": list(self.episodes), "actions": [list(a) for a in self.actions]}

    def restore(self, record: Mapping[str, list[Any]]) -> None:
        """Go to where :meth:`record` was called, by doing the same once more."""
        self.episodes = list(record["episodes"])
        self.actions = [list(actions) for actions in record["actions"]]
        self.returns = np.zeros(len(self.seeds))
        seen, _ = self.vector.reset(seed=[self._seed(i) for i in range(len(self.seeds))])
        kind = self.vector.single_action_space.dtype
        last = np.zeros((len(seen), *self.vector.single_action_space.shape), kind)
        for i, actions in enumerate(self.actions):
            for action in actions:
                last[i] = action
                seen[i], reward, *_ = self.vector.envs[i].step(last[i])
                self.returns[i] += reward
        first = [not actions for actions in self.actions]
        self._see(seen, torch.from_numpy(last), torch.tensor(first))

    def _seed(self, number: int) -> int:
        key = (*self.seeds[number], self.episodes[number])
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def _see(self, seen: np.ndarray, actions: Tensor, first: Tensor) -> None:
        if not self.data.continuous:
            actions = F.one_hot(actions, self.data.n_actions)
        parts = [torch.from_numpy(seen), actions.masked_fill(first[:, None], 0), first[:, None]]
        self.obs, self.done = torch.cat([part.float() for part in parts], 1), first


def _actions(space: Any, env: str) -> tuple[bool, int]:
    """Whether actions are continuous, and how many there are, or their dimensions."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        return False, int(space.n)
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return True, space.shape[0]
    raise ZooError(
        f"data.init_args.env: {env} has actions {space}, expected numbers from 0 or a vector"
    )
