"""S5 for reinforcement learning in context (Lu, Schroecker, Gu, Parisotto, Foerster, Singh and
Behbahani, NeurIPS 2023, arXiv 2303.03982).

An actor and a critic over a stack of S5 layers whose scan forgets at the borders of episodes, so
that a stretch of experience of any length is one parallel pass, from any state on. A step's
``done`` says that the step before it was the last of an episode: the state is reset before the
observation is read. Names are those of the authors' code (luchris429/popjaxrl at 12e5d42, flax).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.registry import register_model
from zoo.models.ssm._s5 import S5SSM, Basis, S5Layer, System, legs_basis, rename_flax

CORES = ("s5", "gru", "none")
#: Linear layers by their names, in the order in which the authors' baseline counts them.
_DENSE = ("encoder_0", "encoder_1", "action_body_0", "action_body_1", "action_decoder",
          "value_body_0", "value_body_1", "value_decoder")  # fmt: skip


class Acting(NamedTuple):
    """What an actor-critic answers.

    Attributes:
        actor: logits of actions, or means of continuous ones, ``[..., A]``.
        value: ``[...]``.
        memory: after the last step, a tensor ``[B, ...]`` for each layer.
    """

    actor: Tensor
    value: Tensor
    memory: list[Tensor]


@dataclass
class PolicyState:
    """What a policy carries from step to step.

    Attributes:
        memory: a tensor ``[B, ...]`` for each layer.
        systems: the discrete systems of S5's layers, for the weights as they were at the start.
    """

    memory: list[Tensor]
    systems: list[System] = field(default_factory=list)


class S5Core(nn.Module):
    """S5 layers that are reset (StackedEncoderModel).

    Args:
        d_model: H.
        ssm_size: real size of a layer's state; half as many modes.
        n_layers: layers.
        activation: see :class:`zoo.models.ssm._s5.S5Layer`.
        do_norm: layer norms.
        prenorm: they are before the state space model, else after the sum.
        do_gtrxl_norm: the same norm once more behind the model.
        ssm: of :class:`zoo.models.ssm._s5.S5SSM`.

    Raises:
        ZooError: if it shall scan in both directions: a policy does not see the future.
    """

    def __init__(
        self,
        d_model: int,
        ssm_size: int,
        n_layers: int,
        activation: str = "gelu",
        do_norm: bool = True,
        prenorm: bool = True,
        do_gtrxl_norm: bool = True,
        **ssm: Any,
    ) -> None:
        super().__init__()
        if ssm.get("bidirectional"):
            raise ZooError("bidirectional must be false: a policy does not see the future")
        basis = legs_basis(ssm_size)
        if not ssm.get("conj_sym", True):
            basis = Basis(
                *(torch.cat([x, x.conj()], dim) for x, dim in zip(basis, (0, 1, 0), strict=True))
            )
        self.layers = nn.ModuleList(
            S5Layer(
                S5SSM(d_model, basis, **ssm), d_model, activation,
                "layer" if do_norm else None, prenorm, do_gtrxl_norm,
            )
            for _ in range(n_layers)
        )  # fmt: skip

    def forward(
        self, x: Tensor, done: Tensor | None = None, memory: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """``[B, L, H]`` to the same, and the states ``[B, P]``."""
        after = []
        for i, layer in enumerate(self.layers):
            x, last = layer(x, state=None if memory is None else memory[i], reset=done)
            after.append(last)
        return x, after

    def begin(self, batch_size: int) -> list[Tensor]:
        """States before the first step."""
        sizes = [(layer.seq.P, layer.seq.Lambda_re) for layer in self.layers]
        return [
            torch.zeros(batch_size, P, dtype=torch.complex64, device=like.device)
            for P, like in sizes
        ]

    def step(self, x: Tensor, done: Tensor, state: PolicyState) -> Tensor:
        """A step ``[B, H]`` to the same; the state moves on."""
        for i, (layer, system) in enumerate(zip(self.layers, state.systems, strict=True)):
            memory = state.memory[i].masked_fill(done[:, None], 0)
            x, state.memory[i] = layer.step(x, memory, system)
        return x


class GRUCore(nn.Module):
    """The baseline: a gated recurrent unit, one step after the other.

    As flax has it: of the recurrent parts the candidate's alone has a bias.

    Args:
        d_model: H.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.input = nn.Linear(d_model, 3 * d_model)  # reset, update, candidate
        self.recurrent = nn.Linear(d_model, 3 * d_model, bias=False)
        self.bias = nn.Parameter(torch.zeros(d_model))
        nn.init.zeros_(self.input.bias)
        with torch.no_grad():
            for weight in self.recurrent.weight.split(d_model):
                nn.init.orthogonal_(weight)

    def forward(
        self, x: Tensor, done: Tensor | None = None, memory: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """``[B, L, H]`` to the same, and the state ``[B, H]``."""
        state = PolicyState(self.begin(len(x)) if memory is None else list(memory))
        never = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        steps = zip(x.unbind(1), (never if done is None else done).unbind(1), strict=True)
        out = torch.stack([self.step(*step, state) for step in steps], 1)
        return out, state.memory

    def begin(self, batch_size: int) -> list[Tensor]:
        """The state before the first step."""
        return [self.bias.new_zeros(batch_size, len(self.bias))]

    def step(self, x: Tensor, done: Tensor, state: PolicyState) -> Tensor:
        """A step ``[B, H]`` to the same; the state moves on."""
        h = state.memory[0].masked_fill(done[:, None], 0)
        r, z, n = self.input(x).chunk(3, -1)
        hr, hz, hn = self.recurrent(h).chunk(3, -1)
        n = (n + (r + hr).sigmoid() * (hn + self.bias)).tanh()
        z = (z + hz).sigmoid()
        state.memory[0] = (1 - z) * n + z * h
        return state.memory[0]


class ActorCritic(nn.Module):
    """Encoder, memory, and two heads (run_popgym.py, ppo_s5.py).

    A :class:`zoo.models.ssm._protocol.Policy`.

    Args:
        d_obs: features of an observation, the previous action and the flag of a first step
            included (:class:`zoo.data.ssm.episodes.Episodes` adds them).
        n_actions: number of actions, or their dimensions if ``continuous``.
        continuous: actions are normal with a free standard deviation.
        core: memory: "s5", "gru" or "none".
        reset: the memory is reset where an episode begins; false: the study without resets.
        d_model: H, width of the memory.
        d_hidden: of the first layer and of the heads.
        ssm_size, n_layers, activation, do_norm, prenorm, do_gtrxl_norm: see :class:`S5Core`.
        ssm: of :class:`zoo.models.ssm._s5.S5SSM`.

    Raises:
        ZooError: if the core is unknown.
    """

    def __init__(
        self,
        d_obs: int = 9,
        n_actions: int = 4,
        continuous: bool = False,
        core: str = "s5",
        reset: bool = True,
        d_model: int = 256,
        d_hidden: int = 128,
        ssm_size: int = 256,
        n_layers: int = 4,
        activation: str = "full_glu",
        do_norm: bool = False,
        prenorm: bool = False,
        do_gtrxl_norm: bool = False,
        **ssm: Any,
    ) -> None:
        super().__init__()
        if core not in CORES:
            raise ZooError(f"core is one of {', '.join(CORES)}, not '{core}'")
        self.d_obs, self.n_actions, self.continuous = d_obs, n_actions, continuous
        self.core, self.reset = core, reset
        self.encoder_0 = _linear(d_obs, d_hidden, 2**0.5)
        self.encoder_1 = _linear(d_hidden, d_model, 2**0.5)
        if core == "s5":
            self.s5: Any = S5Core(
                d_model, ssm_size, n_layers, activation, do_norm, prenorm, do_gtrxl_norm, **ssm
            )
        elif core == "gru":
            self.s5 = GRUCore(d_model)
        self.action_body_0 = _linear(d_model, d_hidden, 2.0)
        self.action_body_1 = _linear(d_hidden, d_hidden, 2.0)
        self.action_decoder = _linear(d_hidden, n_actions, 0.01)
        self.value_body_0 = _linear(d_model, d_hidden, 2.0)
        self.value_body_1 = _linear(d_hidden, d_hidden, 2.0)
        self.value_decoder = _linear(d_hidden, 1, 1.0)
        if continuous:
            self.log_std = nn.Parameter(torch.zeros(n_actions))

    def forward(
        self, obs: Tensor, done: Tensor | None = None, memory: list[Tensor] | None = None
    ) -> Acting:
        """Act along a stretch of experience.

        Args:
            obs: ``[B, L, d_obs]``.
            done: bool ``[B, L]``: the step before was the last of an episode.
            memory: before the first step; as after a reset if absent.

        Raises:
            ZooError: if shapes do not fit.
        """
        if obs.dim() != 3 or (done is not None and done.shape != obs.shape[:2]):
            raise ZooError(
                f"obs are [B, L, {self.d_obs}] and done [B, L], got {list(obs.shape)} and "
                f"{None if done is None else list(done.shape)}"
            )
        x = self._encode(obs)
        after: list[Tensor] = []
        if self.core != "none":
            x, after = self.s5(x, done if self.reset else None, memory)
        return self._decide(x, after)

    def begin(self, batch_size: int, memory: list[Tensor] | None = None) -> PolicyState:
        """The state before a first step, for the weights as they are now.

        Args:
            batch_size: B.
            memory: of the steps before, if there were any.
        """
        if self.core == "none":
            return PolicyState([])
        memory = self.s5.begin(batch_size) if memory is None else list(memory)
        layers = self.s5.layers if self.core == "s5" else []
        return PolicyState(memory, [layer.seq.system() for layer in layers])

    def step(self, obs: Tensor, done: Tensor, state: PolicyState) -> Acting:
        """Act once: the same as :meth:`forward` of one step; the state moves on.

        Args:
            obs: ``[B, d_obs]``.
            done: bool ``[B]``: the step before was the last of an episode.
            state: of :meth:`begin`.
        """
        x = self._encode(obs)
        if self.core != "none":
            x = self.s5.step(x, done if self.reset else torch.zeros_like(done), state)
        return self._decide(x, list(state.memory))

    def _encode(self, obs: Tensor) -> Tensor:
        return F.leaky_relu(self.encoder_1(F.leaky_relu(self.encoder_0(obs))))

    def _decide(self, x: Tensor, memory: list[Tensor]) -> Acting:
        actor = F.leaky_relu(self.action_body_1(F.leaky_relu(self.action_body_0(x))))
        critic = F.leaky_relu(self.value_body_1(F.leaky_relu(self.value_body_0(x))))
        return Acting(self.action_decoder(actor), self.value_decoder(critic)[..., 0], memory)

    def policy(self, actor: Tensor) -> torch.distributions.Distribution:
        """The distribution of actions that an actor's answer stands for."""
        if not self.continuous:
            return torch.distributions.Categorical(logits=actor, validate_args=False)
        normal = torch.distributions.Normal(actor, self.log_std.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Arrays of the authors' flax networks, S5's or the baseline's."""
        state = rename_flax(state)
        cell = "ScannedRNN_0.GRUCell_0."
        if not any(key.startswith(cell) for key in state):
            return state
        renamed = {
            re.sub(r"^Dense_(\d)", lambda match: _DENSE[int(match[1])], key): value
            for key, value in state.items()
            if not key.startswith(cell)
        }
        for ours, theirs, kind in (
            ("input.weight", "i", "weight"),
            ("input.bias", "i", "bias"),
            ("recurrent.weight", "h", "weight"),
        ):
            parts = [state[f"{cell}{theirs}{gate}.{kind}"] for gate in "rzn"]
            renamed[f"s5.{ours}"] = torch.cat(parts)
        renamed["s5.bias"] = state[f"{cell}hn.bias"]
        return renamed


def _linear(d_in: int, d_out: int, gain: float) -> nn.Linear:
    """Orthogonal weights, no bias at first."""
    layer = nn.Linear(d_in, d_out)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


@register_model(parameters=1_186_949)
def s5_rl_popgym(**overrides: Any) -> ActorCritic:
    """S5 actor-critic of POPGym: 4 layers of width 256, no norms; sized for RepeatPrevious."""
    return ActorCritic(**overrides)


@register_model(parameters=528_005)
def s5_rl_gru(**overrides: Any) -> ActorCritic:
    """The same with a gated recurrent unit of width 256, the baseline."""
    return ActorCritic(**({"core": "gru"} | overrides))


@register_model(parameters=1_188_355)
def s5_rl_bsuite(**overrides: Any) -> ActorCritic:
    """The code's defaults, for bsuite's memory chain: norms before S5 and behind it."""
    settings = dict(d_obs=6, n_actions=2, do_norm=True, prenorm=True, do_gtrxl_norm=True)
    return ActorCritic(**(settings | overrides))


@register_model(parameters=1_186_435)
def s5_rl_meta_cartpole(**overrides: Any) -> ActorCritic:
    """For trials of CartPole behind a random projection of its observations."""
    return ActorCritic(**({"d_obs": 7, "n_actions": 2} | overrides))


@register_model(parameters=1_185_923)
def s5_rl_pendulum(**overrides: Any) -> ActorCritic:
    """For POPGym's pendulum without its velocity: one continuous action."""
    return ActorCritic(**({"d_obs": 4, "n_actions": 1, "continuous": True} | overrides))
