"""Mamba-360: one interface for the survey's layers, what they cost, and what selection buys."""

from __future__ import annotations

import time
from functools import partial

import torch
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from zoo.models.ssm._backbone import ResidualBlock
from zoo.models.ssm.mamba360 import LAYERS, SequenceLayer, create_layer, mixed_layer
from zoo.plots.style import BLUE, new_figure, plain, rendered
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.language.mamba import SelectiveCopying
from zoo.proofs.synthetic import TrainedBlock


class OneInterface(Measurement):
    """Every layer with random weights: does it look ahead, and do its forms agree?

    Measures the largest of all layers: ``ahead``, the gradient of an output for later inputs;
    ``parts`` and ``steps``, deviations of two parts and of single steps from the whole; ``kernel``,
    of the convolution with the impulse response; all relative.

    Args:
        d_model, length: of the inputs.
    """

    def __init__(self, d_model: int = 16, length: int = 64) -> None:
        self.d_model, self.length = d_model, length

    def measure(self, seed: int) -> Measured:
        """All layers, one after the other."""
        found = dict.fromkeys(("ahead", "parts", "steps", "kernel"), 0.0)
        for name in LAYERS:
            torch.manual_seed(seed)
            for form, error in self._deviations(layer_of(name, self.d_model)).items():
                found[form] = max(found[form], error)
        return Measured(found)

    def _deviations(self, layer: SequenceLayer) -> dict[str, float]:
        half = self.length // 2
        x = torch.randn(2, self.length, self.d_model, requires_grad=True)
        whole = layer(x)
        (gradient,) = torch.autograd.grad(whole[:, half].sum(), x)
        found = {"ahead": float(gradient[:, half + 1 :].abs().max() / gradient.abs().max())}
        with torch.no_grad():
            if layer.has_state:
                for form, size in (("parts", half), ("steps", 1)):
                    state = layer.allocate_state(2)
                    made = torch.cat([layer(part, state) for part in x.split(size, 1)], 1)
                    found[form] = _relative(made, whole)
            if layer.kind == "lti":
                found["kernel"] = _relative(_convolved(layer.impulse(self.length), x), whole)
        return found


def layer_of(name: str, d_model: int) -> SequenceLayer:
    """A layer with the survey's settings; Mamba-2's heads must fit into a narrow one."""
    settings = {"headdim": d_model // 2} if name == "mamba2" else {}
    layer = create_layer(name, d_model, **settings)
    assert isinstance(layer, SequenceLayer)
    return layer


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _convolved(K: Tensor, x: Tensor) -> Tensor:
    """[H, L] or [H, H, L] with [B, L, H], step by step in float64."""
    K = torch.diag_embed(K.T).permute(1, 2, 0) if K.dim() == 2 else K
    K, x = K.double(), x.double()
    steps = [
        torch.einsum("oij,bji->bo", K[..., : t + 1].flip(-1), x[:, : t + 1])
        for t in range(x.shape[1])
    ]
    return torch.stack(steps, 1)


class Costs(Measurement):
    """What a layer of width 64 takes: parameters, numbers of its state, and time.

    Measures ``seconds_sum`` over all layers, and draws them side by side.

    Args:
        d_model, length: of the inputs.
        repeats: of a time, of which the shortest counts.
    """

    seeded = False

    def __init__(self, d_model: int = 64, length: int = 1024, repeats: int = 3) -> None:
        self.d_model, self.length, self.repeats = d_model, length, repeats

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Time a whole sequence and a step of each."""
        rows: dict[str, tuple[float, float, float, float]] = {}
        for name in LAYERS:
            layer = layer_of(name, self.d_model)
            x = torch.randn(1, self.length, self.d_model)
            whole = self._shortest(partial(layer, x))
            size, step = float("nan"), float("nan")
            if layer.has_state:
                state = layer.allocate_state(1)
                size = sum(t.numel() * (2 if t.is_complex() else 1) for t in state.tensors())
                step = self._shortest(partial(layer, x[:, :1], state))
            count = sum(p.numel() for p in layer.parameters())
            rows[name] = (count, size, self.length / whole, 1e3 * step)
        return Measured(
            {"seconds_sum": sum(self.length / row[2] for row in rows.values())},
            [], [{"cost of a layer of width 64": self._drawn(rows)}],
        )  # fmt: skip

    def _shortest(self, call: partial) -> float:
        call()
        times = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return min(times)

    def _drawn(self, rows: dict[str, tuple[float, float, float, float]]):
        titles = (
            "parameters",
            "numbers of a state",
            "steps a second, whole",
            "ms of a single step",
        )
        figure = new_figure(11, 4.2)
        for column, axes in enumerate(figure.subplots(1, 4, sharey=True)):
            values = [row[column] for row in rows.values()]
            plain(axes).barh(list(rows), values, color=BLUE)
            axes.set(title=titles[column], xscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # powers of ten alone have room
            axes.invert_yaxis() if column == 0 else None
        return rendered(figure)


class Selectivity(TrainedBlock):
    """Two layers of width 32, trained to copy a few symbols out of noise.

    Measures as :class:`zoo.proofs.synthetic.TrainedNetwork`.

    Args:
        layer: name, see :func:`zoo.create_layer`.
        fixed: the symbols stand at the beginning, not at random places.
        steps: of the training.
    """

    def __init__(self, layer: str, fixed: bool = False, steps: int = 1500) -> None:
        super().__init__(
            SelectiveCopying(length=64, fixed=fixed), partial(_block, layer), dim=32, depth=2,
            steps=steps, batch_size=32, test_samples=1024,
        )  # fmt: skip
        self.layer, self.fixed = layer, fixed


def _block(layer: str, dim: int) -> nn.Module:
    return ResidualBlock(dim, mixed_layer(dim, layer, {}))
