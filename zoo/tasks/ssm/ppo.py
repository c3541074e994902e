"""Reinforcement learning of policies with a memory: proximal policy optimization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.ssm.episodes import Environments, Episodes
from zoo.errors import ZooError
from zoo.models.protocols import check_model
from zoo.models.ssm._protocol import Policy
from zoo.plots.episodes import rewards_of_episodes
from zoo.tasks._scores import Scores
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = "s5_rl_popgym"


class Rollout(NamedTuple):
    """A stretch of experience in each of N environments.

    Attributes:
        memory: of the policy before the first step, ``[N, ...]`` each.
        obs: what it saw ``[N, T, D]``.
        done: bool ``[N, T]``: the step before was the last of an episode.
        actions: ``[N, T]``, or ``[N, T, A]`` of continuous ones.
        log_probs, values, advantages: of each step ``[N, T]``.
    """

    memory: list[Tensor]
    obs: Tensor
    done: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor

    def of(self, rows: Tensor) -> Rollout:
        """The part of some environments."""
        return Rollout([part[rows] for part in self.memory], *(part[rows] for part in self[1:]))


class PPO(ModelTask):
    """Proximal policy optimization (Schulman et al., arXiv 1707.06347) of a policy with a memory.

    The model is a :class:`zoo.models.ssm._protocol.Policy`. It acts for ``steps`` steps in all
    copies of the environment, one step after the other, and learns from them in ``epochs`` epochs
    of the trainer, each copy's stretch in one pass from the memory that it began with. So a batch
    is of copies, and time is never cut. Copies go on from stretch to stretch.

    Measures ``episode_return``, the sum of rewards of an episode, of the most likely actions; while
    it learns, of drawn ones. A time limit ends an episode as anything else does.

    Args:
        args, kwargs: see :class:`ModelTask`.
        steps: of a copy between two changes of what is learnt from.
        epochs: over the same steps.
        gamma: what a reward one step later is worth.
        gae_lambda: of generalised advantage estimation.
        clip: how far the ratio of probabilities, and the value, may move.
        value_weight, entropy_weight: of the losses.

    Attributes:
        returns: the mean return of the episodes that ended in each rollout of this process.

    Raises:
        ZooError: a setting is out of its range.
    """

    monitor = "val/episode_return"
    monitor_mode = "max"
    data_type, data_has, data_example = Episodes, "environments", "zoo.data.Episodes"
    shown_limit = 24

    def __init__(
        self,
        *args: Any,
        steps: int = 1024,
        epochs: int = 30,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip: float = 0.2,
        value_weight: float = 1.0,
        entropy_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, value, least, most in (
            ("steps", steps, 1, np.inf),
            ("epochs", epochs, 1, np.inf),
            ("gamma", gamma, 0, 1),
            ("gae_lambda", gae_lambda, 0, 1),
            ("clip", clip, 0, 1),
        ):
            if not least <= value <= most:
                raise ZooError(f"model.init_args.{name} is {value}, expected {least} to {most}")
        self.steps, self.epochs, self.gamma, self.gae_lambda = steps, epochs, gamma, gae_lambda
        self.clip, self.value_weight, self.entropy_weight = clip, value_weight, entropy_weight
        self.rollout: Rollout | None = None
        self.rollout_number = -1
        self.players: Environments | None = None
        self.memory: list[Tensor] | None = None
        self.returns: list[float] = []
        self._kept: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)

    @override
    def configure_models(self) -> None:
        super().configure_models()
        check_model(self.model, Policy, self.model_name, EXAMPLE)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """The return of an episode."""
        return {"episode_return": MeanMetric()}

    def check_data(self, data: DataModule) -> None:
        """Observations and actions must fit."""
        super().check_data(data)
        for name in ("d_obs", "n_actions", "continuous"):
            built, given = getattr(self.model, name), getattr(data, name)
            if built != given:
                raise ZooError(
                    f"the environment has {name} {given}, but the model {self.model_name} was "
                    f"built with {built}: set model.init_args.model_args.{name} to {given}"
                )

    # experience

    @torch.no_grad()
    def collect(self, number: int) -> Rollout:
        """Act for ``steps`` steps; what is drawn depends on the seed and the number alone."""
        data, model = self._episodes, self._policy
        players = self._players()
        state = model.begin(len(players.seeds), self.memory)
        memory = list(state.memory)
        generator = torch.Generator().manual_seed(data.seed * 1_000_003 + number)
        kept: list[tuple[Tensor, ...]] = []
        ended: list[float] = []
        for _ in range(self.steps):
            obs, done = players.obs.to(self.device), players.done.to(self.device)
            answer = model.step(obs, done, state)
            policy = model.policy(answer.actor.float())
            action = _draw(policy, generator)
            reward, finished = players.step(action.cpu())
            ended += finished
            log_prob = policy.log_prob(action)
            kept.append((obs, done, action, log_prob, answer.value.float(), reward.to(obs.device)))
        self.memory = list(state.memory)
        last_done = players.done.to(self.device)
        last = model.step(players.obs.to(self.device), last_done, state).value.float()
        obs, done, actions, log_probs, values, rewards = (
            torch.stack(part, 1) for part in zip(*kept, strict=True)
        )
        if ended:
            self.returns.append(float(np.mean(ended)))
        advantages = generalised_advantages(
            rewards,
            torch.cat([values, last[:, None]], 1),
            torch.cat([done[:, 1:], last_done[:, None]], 1),
            self.gamma,
            self.gae_lambda,
        )
        return Rollout(memory, obs, done, actions, log_probs, values, advantages)

    @property
    def _policy(self) -> Any:
        return self.model

    @property
    def _episodes(self) -> Episodes:
        assert isinstance(self.data, Episodes)
        return self.data

    def _players(self) -> Environments:
        """The environments that are learnt in."""
        if self.players is None:
            data = self._episodes
            self.players = data.environments("train", range(len(data.source("train"))))
        return self.players

    # steps

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of the copies of a batch; in the first step of every ``epochs`` epochs, acts."""
        number = self.current_epoch // self.epochs
        self.restore_experience()
        if self.rollout is None or self.rollout_number != number:
            self.rollout, self.rollout_number = self.collect(number), number
            if self.returns:
                self.log("train/episode_return", self.returns[-1], on_step=False, on_epoch=True,
                         prog_bar=True, batch_size=1)  # fmt: skip
        part = self.rollout.of(batch["env"].to(self.rollout.obs.device))
        answer = self.model(part.obs, part.done, part.memory)
        policy = self._policy.policy(answer.actor.float())
        values, targets = answer.value.float(), part.advantages + part.values
        moved = part.values + (values - part.values).clamp(-self.clip, self.clip)
        errors = torch.maximum((values - targets).square(), (moved - targets).square())
        ratio = (policy.log_prob(part.actions) - part.log_probs).exp()
        everyone = self.all_gather(part.advantages)  # of all processes that share the step
        advantages = part.advantages - everyone.mean()
        advantages = advantages / (everyone.std(correction=0) + 1e-8)
        gain = torch.minimum(
            ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages
        )
        losses = -gain + self.value_weight * 0.5 * errors - self.entropy_weight * policy.entropy()
        return losses.mean()

    def evaluate(self, batch: dict[str, Tensor], scores: Scores) -> list[np.ndarray]:
        """Play the episodes of a batch; returns the rewards of each."""
        split = next(name for name in ("val", "test") if scores is self.scores[name])
        played = self.play(self._episodes.environments(split, batch["episode"].tolist()))
        scores["episode_return"].update(torch.tensor([float(rewards.sum()) for rewards in played]))
        return played

    @torch.no_grad()
    def play(self, players: Environments) -> list[np.ndarray]:
        """An episode in each environment, of the most likely actions; their rewards [T]."""
        model: Any = self.eval_model
        state = model.begin(len(players.seeds))
        rewards: list[Tensor] = []
        lengths = torch.zeros(len(players.seeds), dtype=torch.long)
        while not lengths.all():
            obs, done = players.obs.to(self.device), players.done.to(self.device)
            actor = model.step(obs, done, state).actor.float()
            rewards.append(players.step(model.policy(actor).mode.cpu())[0])
            lengths[players.done & (lengths == 0)] = len(rewards)
        table = torch.stack(rewards, 1).numpy()
        return [row[:length] for row, length in zip(table, lengths.tolist(), strict=True)]

    # pictures

    def examples(self, batch: dict[str, Tensor], outputs: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The rewards of episodes."""
        return iter(outputs)

    def figures(self) -> dict[str, Figure]:
        """Rewards of episodes of the test."""
        title = f"Episodes of the test: a return of {float(self.results['episode_return']):.3f}"
        return {"episodes": rewards_of_episodes(self.shown, title)}

    # checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" in checkpoint and self.rollout is not None:
            assert self.players is not None
            checkpoint["experience"] = {
                "rollout": self.rollout._asdict(),
                "number": self.rollout_number,
                "memory": self.memory,
                "players": self.players.record(),
            }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._kept = checkpoint.get("experience")

    def restore_experience(self) -> None:
        """Take the rollout of a checkpoint, and let the environments go to where they were."""
        if self._kept is None:
            return
        parts = dict(self._kept["rollout"])
        memory = [part.to(self.device) for part in parts.pop("memory")]
        parts = {name: part.to(self.device) for name, part in parts.items()}
        self.rollout, self.rollout_number = Rollout(memory, **parts), self._kept["number"]
        self.memory = [part.to(self.device) for part in self._kept["memory"]]
        self._players().restore(self._kept["players"])
        self._kept = None


def generalised_advantages(
    rewards: Tensor, values: Tensor, ended: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """How much better actions were than expected (GAE, Schulman et al., arXiv 1506.02438).

    Args:
        rewards: ``[N, T]``.
        values: before each step and after the last one, ``[N, T + 1]``.
        ended: bool ``[N, T]``: the step was the last of its episode.
        gamma, gae_lambda: how fast what comes later counts less.
    """
    goes_on = gamma * (~ended).to(values.dtype)
    surprise = rewards + goes_on * values[:, 1:] - values[:, :-1]
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        later = advantages[:, t] = surprise[:, t] + gae_lambda * goes_on[:, t] * later
    return advantages


def _draw(policy: torch.distributions.Distribution, generator: torch.Generator) -> Tensor:
    """An action of each; a generator of the CPU's, so that devices draw the same."""
    if isinstance(policy, torch.distributions.Categorical):
        noise = torch.empty(policy.logits.shape).exponential_(generator=generator)
        return (policy.logits - noise.log().to(policy.logits.device)).argmax(-1)
    mean = policy.mean
    return mean + policy.stddev * torch.randn(mean.shape, generator=generator).to(mean.device)
