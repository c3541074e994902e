"""S5-RL: that resets are borders, what they are worth, and a policy that must remember."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.base import DataModule
from zoo.models.ssm._s5 import S5SSM, legs_basis
from zoo.models.ssm.s5_rl import ActorCritic, GRUCore, S5Core
from zoo.ops import diagonal_scan
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import Samples, SyntheticTask, TrainedNetwork
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task
from zoo.tasks.ssm.ppo import PPO

SUITS = 4


class Resets(Measurement):
    """The scan with resets against a loop, and a sequence of several episodes against each alone.

    Args:
        length: of the scan's sequence.
        episodes: in the packed sequence.
    """

    def __init__(self, length: int = 64, episodes: int = 8) -> None:
        self.length, self.episodes = length, episodes

    def measure(self, seed: int) -> Measured:
        """``scan``: the largest difference from a loop in complex128, relative to the largest
        state; ``unreset``: that of a scan without resets; ``packed`` and ``gradient``: of answers
        and of the gradient of all parameters; ``steps``: of single steps from the whole."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        a = torch.polar(torch.rand(16, generator=generator) * 0.5 + 0.5, torch.arange(16.0))
        b = torch.randn(2, self.length, 16, generator=generator, dtype=torch.complex64)
        x = first = torch.randn(2, 16, generator=generator, dtype=torch.complex64)
        reset = torch.rand(2, self.length, generator=generator) < 0.1
        reset[:, self.length // 2] = True
        expected = torch.empty_like(b, dtype=torch.complex128)
        x = x.to(expected.dtype)
        for t in range(self.length):
            x = a * x * ~reset[:, t, None] + b[:, t]
            expected[:, t] = x
        whole = diagonal_scan(a, b, initial_state=first, reset=reset)
        without = diagonal_scan(a, b, initial_state=first)
        axes = Axes("Difference from a loop", "step", "of states, at most", "y")
        apart = (whole - expected).abs().amax((0, 2)).clamp_min(1e-9)
        lost = (without - expected).abs().amax((0, 2)).clamp_min(1e-9)
        curves = [
            Curve(axes, range(self.length), apart.tolist(), "with resets"),
            Curve(axes, range(self.length), lost.tolist(), "without"),
        ]
        values = {"scan": _apart(whole, expected), "unreset": _apart(without, expected)}
        return Measured(values | self._packed(generator), curves)

    def _packed(self, generator: torch.Generator) -> dict[str, float]:
        model = ActorCritic(d_model=32, d_hidden=32, ssm_size=32, n_layers=2)
        sizes = torch.randint(3, 20, (self.episodes,), generator=generator).tolist()
        obs = torch.randn(1, sum(sizes), 9, generator=generator)
        done = torch.zeros(obs.shape[:2], dtype=torch.bool)
        done[0, torch.tensor([0, *sizes[:-1]]).cumsum(0)] = True
        weights = torch.randn(1, sum(sizes), 5, generator=generator)

        def answer(*parts: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
            found = [model(part, begins) for part, begins in parts]
            both = [torch.cat([each.actor, each.value[..., None]], -1) for each in found]
            together = torch.cat(both, 1)
            gradients = torch.autograd.grad((together * weights).sum(), [*model.parameters()])
            return together.detach(), torch.cat([g.flatten() for g in gradients])

        packed, gradient = answer((obs, done))
        alone, theirs = answer(*((part, None) for part in obs.split(sizes, 1)))
        with torch.no_grad():
            state = model.begin(1)
            steps = [model.step(obs[:, t], done[:, t], state) for t in range(obs.shape[1])]
            stepped = torch.stack([torch.cat([s.actor, s.value[:, None]], 1) for s in steps], 1)
        return {
            "packed": _apart(packed, alone),
            "gradient": _apart(gradient, theirs),
            "steps": _apart(stepped, packed),
        }


class FirstCards(SyntheticTask):
    """Episodes behind each other: at every step the first card of the episode is asked for.

    Args:
        length: of a sequence.
        shortest, longest: episodes.
    """

    symbols, classes = 2 * SUITS, SUITS

    def __init__(self, length: int = 256, shortest: int = 20, longest: int = 40) -> None:
        self.length, self.shortest, self.longest = length, shortest, longest
        self.known = {"guess": 1 / SUITS}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Cards [B, L], whose number is higher by the number of suits where an episode begins."""
        most = -(-self.length // self.shortest)
        sizes = torch.randint(
            self.shortest, self.longest + 1, (count, most), generator=generator
        ).cumsum(1)
        begins = torch.zeros(count, self.length + self.longest * most, dtype=torch.long)
        begins.scatter_(1, sizes, 1)
        begins[:, 0] = 1
        begins = begins[:, : self.length]
        cards = torch.randint(SUITS, begins.shape, generator=generator)
        places = torch.arange(self.length) * begins
        firsts = cards.gather(1, places.cummax(1).values)
        return Samples((cards + SUITS * begins,), firsts)


class Rememberer(nn.Module):
    """Two S5 layers between an embedding and a linear layer.

    Args:
        reset: the state is reset where an episode begins.
        d_model, ssm_size: of the layers.
    """

    def __init__(self, reset: bool, d_model: int = 32, ssm_size: int = 32) -> None:
        super().__init__()
        self.reset = reset
        self.embedding = nn.Embedding(2 * SUITS, d_model)
        self.s5 = S5Core(d_model, ssm_size, 2, "full_glu", do_norm=False, do_gtrxl_norm=False)
        self.head = nn.Linear(d_model, SUITS)

    def forward(self, cards: Tensor) -> Tensor:
        """Cards [B, L] -> logits [B, L, SUITS]."""
        x, _ = self.s5(self.embedding(cards), cards >= SUITS if self.reset else None)
        return self.head(x)


class Memory(TrainedNetwork):
    """The share of steps at which the episode's first card is named, by a network that was trained
    on sequences of several episodes.

    Args:
        reset: the state is reset where an episode begins.
        steps, batch_size, test_samples: see :class:`zoo.proofs.synthetic.TrainedNetwork`.
    """

    def __init__(
        self, reset: bool, steps: int = 300, batch_size: int = 16, test_samples: int = 64
    ) -> None:
        super().__init__(FirstCards(), steps, batch_size, 3e-3, test_samples)
        self.reset = reset

    def network(self) -> nn.Module:
        """The network."""
        return Rememberer(self.reset)


class Speed(Measurement):
    """Seconds of a forward and backward pass of S5's layer with resets, and of the gated recurrent
    unit, step after step, of the same width.

    Args:
        length: of the sequences.
        repeats: of which the fastest counts.
    """

    seeded = False

    def __init__(self, length: int = 256, repeats: int = 5) -> None:
        self.length, self.repeats = length, repeats

    def measure(self, seed: int) -> Measured:
        """``seconds_scan`` and ``seconds_loop``."""
        torch.manual_seed(seed)
        x, done = torch.randn(16, self.length, 32), torch.rand(16, self.length) < 0.05
        ssm, gru = S5SSM(32, legs_basis(32)), GRUCore(32)
        runs: dict[str, Callable[[], Tensor]] = {
            "seconds_scan": lambda: F.gelu(ssm(x, reset=done)[0]).sum(),
            "seconds_loop": lambda: gru(x, done)[0].sum(),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                run().backward()
                taken[name].append(time.perf_counter() - start)
        return Measured({name: min(seconds) for name, seconds in taken.items()})


class Player(Trained):
    """A recipe that trains a policy: ``episode_return`` of the test's episodes, and how it grew."""

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """The mean return of each rollout."""
        assert isinstance(task, PPO)
        axes = Axes("Learning to play", "rollout", "return, actions drawn")
        return Measured({}, [Curve(axes, range(1, len(task.returns) + 1), task.returns)])


def _apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
