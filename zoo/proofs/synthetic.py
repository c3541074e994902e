"""Proofs that train a block on a synthetic task: endless samples whose answers are known.

A new paper needs a constructor of its block, which maps ``[B, ..., D]`` to the same, and names one
of the tasks here; see :class:`TrainedBlock`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.synthetic.cues import CUE_CHANNELS, CUE_CLASSES, bit_maps, cue_maps
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

#: Of targets that nobody asks for.
IGNORE = -100
#: Points of a learning curve, and samples that each is measured on.
_POINTS, _WATCHED = 20, 256
#: Samples of a batch in evaluation.
_EVAL_BATCH = 256


@dataclass
class Samples:
    """A batch of a synthetic task.

    Args:
        inputs: arguments of the network, [B, ...] each.
        targets: classes [B, ...], ``IGNORE`` where none is asked for.
        groups: name -> which targets the accuracy is also measured of, bool, of their shape.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    groups: dict[str, Tensor] = field(default_factory=dict)


class SyntheticTask(ABC):
    """Samples that are drawn when they are needed.

    Attributes:
        channels: of the first input; None: it holds symbols.
        symbols: how many there are.
        classes: of the targets.
        known: what lines of a learning curve are known beforehand, such as that of a guess.
    """

    channels: int | None = None
    symbols: int = 0
    classes: int
    known: dict[str, float]

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """So many new samples."""


class CueEverywhere(SyntheticTask):
    """Every cell of a map tells the class of a cue that one cell holds.

    Args:
        size: side of the map.
    """

    channels, classes = CUE_CHANNELS, CUE_CLASSES

    def __init__(self, size: int = 8) -> None:
        self.size = size
        cells = size**2
        behind = (cells + 1) / (2 * cells)  # of all pairs the cue is not after the cell
        self.known = {
            "guess": 1 / CUE_CLASSES,
            "best if a cell sees no later one": behind + (1 - behind) / CUE_CLASSES,
        }

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Maps [B, H, W, channels]."""
        maps, classes, _ = cue_maps(count, self.size, self.size, generator)
        targets = classes[:, None, None].expand(-1, self.size, self.size)
        return Samples((maps.permute(0, 2, 3, 1),), targets)


class CueDirection(SyntheticTask):
    """Every cell of a map tells in which direction the cue lies: above or not, left or not.

    A mean over all places cannot tell. The group ``inner`` are cells a quarter of the side or more
    from the border, which betrays where a cell lies.

    Args:
        size: side of the map.
    """

    channels, classes = CUE_CHANNELS, 4

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.known = {"guess": 1 / 4}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Maps [B, H, W, channels]."""
        maps, _, cells = cue_maps(count, self.size, self.size, generator)
        line = torch.arange(self.size)
        row, column = (x[:, None, None] for x in (cells // self.size, cells % self.size))
        targets = 2 * (row < line[:, None]) + (column < line)
        rim = self.size // 4
        inside = (line >= rim) & (line < self.size - rim)
        inner = (inside[:, None] & inside).expand(count, -1, -1)
        return Samples((maps.permute(0, 2, 3, 1),), targets, {"inner": inner})


class RightNeighbour(SyntheticTask):
    """Every cell of a map of random bits tells the bit on its right.

    Cells near the border, which scans enter otherwise, are not asked. Who sees only how many of the
    four neighbours are set is right in 11 of 16 cases at best.

    Args:
        size: side of the map.
    """

    symbols, classes = 2, 2

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.known = {"best without directions": 11 / 16}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Bits [B, H, W]."""
        bits = bit_maps(count, self.size, self.size, generator)
        targets = torch.full_like(bits, IGNORE)
        inner, right = slice(2, self.size - 2), slice(3, self.size - 1)
        targets[:, inner, inner] = bits[:, inner, right]
        return Samples((bits,), targets)


class TrainedNetwork(Measurement):
    """Accuracy of a network on new samples of a synthetic task that it was trained on.

    Measures ``accuracy``, that of the task's groups by their names, ``parameters``, and what a
    subclass finds in ``inspect``; draws the learning curve and, for maps, the accuracy of each
    cell.

    Args:
        task: see :class:`SyntheticTask`.
        steps, batch_size, lr: of the training.
        test_samples: that are measured.
    """

    def __init__(
        self,
        task: SyntheticTask,
        steps: int = 400,
        batch_size: int = 64,
        lr: float = 3e-3,
        test_samples: int = 2048,
    ) -> None:
        self.task, self.steps, self.batch_size, self.lr = task, steps, batch_size, lr
        self.test_samples = test_samples

    @abstractmethod
    def network(self) -> nn.Module:
        """Inputs of the task -> logits, the shape of the targets and [classes]."""

    def inspect(self, network: nn.Module, samples: Samples) -> Measured:
        """More of the trained network in evaluation mode, which may be changed."""
        return Measured({})

    def measure(self, seed: int) -> Measured:
        """Train, then count right answers to new samples."""
        torch.manual_seed(seed)
        network = self.network()
        drawn, tests = (torch.Generator().manual_seed(2 * seed + part) for part in (0, 1))
        watched = self.task.draw(min(_WATCHED, self.test_samples), tests)
        samples = self.task.draw(self.test_samples, tests)
        steps: list[int] = []
        learnt: list[float] = []

        def loss(step: int) -> Tensor:
            batch = self.task.draw(self.batch_size, drawn)
            logits = network(*batch.inputs).flatten(0, -2)
            return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE)

        def watch(step: int) -> None:
            steps.append(step)
            learnt.append(_share(*_answers(network.eval(), watched)))
            network.train()

        fit(network, loss, self.steps, self.lr, watch=watch)
        right, asked = _answers(network, samples)
        axes = Axes("Learning", "training step", "share of right answers")
        curves = [Curve(axes, steps, learnt)]
        curves += [
            Curve(axes, [0, self.steps], [value, value], name, "known")
            for name, value in self.task.known.items()
        ]
        pictures = []
        if right.ndim == 3:
            count = asked.sum(0)
            share = (right & asked).sum(0) / count
            pictures = [{"right answers of each cell": share.where(count > 0, torch.nan).numpy()}]
        values = {
            "accuracy": _share(right, asked),
            **{name: _share(right, asked & group) for name, group in samples.groups.items()},
            "parameters": float(sum(p.numel() for p in network.parameters())),
        }
        more = self.inspect(network, samples)
        return Measured(values | more.values, curves + more.curves, [*more.pictures] or [*pictures])


class TrainedBlock(TrainedNetwork):
    """A block between a linear or embedding layer and a linear layer, trained on a task.

    Args:
        task: see :class:`SyntheticTask`.
        block: given ``dim``, builds a module [B, ..., dim] -> the same.
        dim: width.
        depth: so many blocks in a row.
        kwargs: see :class:`TrainedNetwork`.
    """

    def __init__(
        self,
        task: SyntheticTask,
        block: Callable[[int], nn.Module],
        dim: int = 32,
        depth: int = 1,
        **kwargs: object,
    ) -> None:
        super().__init__(task, **kwargs)  # type: ignore[arg-type]
        self.block, self.dim, self.depth = block, dim, depth

    def network(self) -> nn.Module:
        """Stem, blocks, norm and head."""
        task, dim = self.task, self.dim
        stem = nn.Embedding(task.symbols, dim)
        return nn.Sequential(
            stem if task.channels is None else nn.Linear(task.channels, dim),
            *(self.block(dim) for _ in range(self.depth)),
            nn.LayerNorm(dim),
            nn.Linear(dim, task.classes),
        )


@torch.inference_mode()
def _answers(network: nn.Module, samples: Samples) -> tuple[Tensor, Tensor]:
    """Which answers are right, and which were asked for."""
    parts = zip(*(x.split(_EVAL_BATCH) for x in samples.inputs), strict=True)
    answers = torch.cat([network(*part).argmax(-1) for part in parts])
    return answers == samples.targets, samples.targets != IGNORE


def _share(right: Tensor, asked: Tensor) -> float:
    return float(right[asked].double().mean())


def fit(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    watch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Minimise ``loss(step)`` over ``steps`` steps with AdamW; the rate warms up and falls to zero
    (one cycle).

    Args:
        network: is left in evaluation mode.
        loss: of a step.
        steps, lr, weight_decay: of the optimizer.
        watch: called now and then, and after the last step, with the number of steps done.

    Returns:
        the network.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        if watch is not None and step % max(1, steps // _POINTS) == 0:
            watch(step)
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if watch is not None:
        watch(steps)
    return network.eval()


def reach(network: Callable[[Tensor], Tensor], x: Tensor, place: tuple[int, ...]) -> Tensor:
    """Which positions of the input an output depends on.

    Args:
        network: [1, ...positions, C] -> [1, ...positions, C].
        x: an input; float64, so that small influences do not vanish.
        place: position of the output.

    Returns:
        bool [...positions]: whether the gradient of the output to that input position is non-zero.
    """
    x = x.requires_grad_()
    output = network(x)[(0, *place)]
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return gradient[0].ne(0).any(dim=-1)
