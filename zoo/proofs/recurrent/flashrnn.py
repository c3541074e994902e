"""FlashRNN: what recurrences that are not linear can follow, what the kernels compute, how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.models.recurrent.flashrnn import FlashRNN, RecurrentLayer, RecurrentMixer
from zoo.ops import linear_attention, recurrent_cell, recurrent_cell_reference
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.recurrent._parity import TrainedParity


class LinearCell(nn.Module):
    """A recurrence of the same width that is linear: h = f h' + (1 - f) z, f and z of the input.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gates = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, dim] to the same."""
        f, z = self.gates(x).chunk(2, dim=-1)
        f, z = f.sigmoid()[..., None], z[..., None]
        h = linear_attention(torch.ones_like(f), 1 - f, z, f[..., 0])
        assert isinstance(h, Tensor)
        return self.out_proj(h[..., 0])


class Parity(TrainedParity):
    """One layer at parity; see :class:`zoo.proofs.recurrent._parity.TrainedParity`.

    Args:
        function: a cell of :class:`zoo.models.recurrent.flashrnn.FlashRNN`, or "linear".
        num_heads: of the layer.
        dim: its width.
        steps: of the training.
    """

    def __init__(self, function: str, num_heads: int = 2, dim: int = 32, steps: int = 1000) -> None:
        def block(width: int) -> nn.Module:
            if function == "linear":
                return LinearCell(width)
            return RecurrentMixer(width, num_heads, function)

        super().__init__(block, (8, 16, 32, 64, 96, 128), dim=dim, steps=steps, lr=1e-2)


class Forms(Measurement):
    """Largest differences between forms of one network with random weights, in float32.

    Measures ``torch``: of one head from that of PyTorch; ``blocks``: of several heads from one
    head with a matrix of blocks; ``parts``: of a sequence in two parts from one pass.
    """

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Over LSTM, GRU and Elman networks, and for the last two over sLSTM as well."""
        torch.manual_seed(seed)
        differences: dict[str, list[Tensor]] = {"torch": [], "blocks": [], "parts": []}
        for function in ("lstm", "gru", "elman", "slstm"):
            network = FlashRNN(12, 4, 8, function=function)
            layer, x = network.layers[0], torch.randn(3, 40, 12)
            assert isinstance(layer, RecurrentLayer)
            h, _ = network(x)
            first, states = network(x[:, :17])
            second, _ = network(x[:, 17:], states)
            differences["parts"].append(torch.cat([first, second], 1) - h)
            Wx = layer.W(x).unflatten(-1, (-1, 1, 32))
            R = torch.stack([torch.block_diag(*gate) for gate in layer.R])[:, None]
            one, _ = recurrent_cell(Wx, R, layer.b.flatten(1)[:, None], cell=function)
            differences["blocks"].append(one[0, :, :, 0] - h)
            kind = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}.get(function)
            if kind is not None:
                theirs, ours = kind(12, 32, batch_first=True), FlashRNN(12, 1, 32, 1, function)
                ours.load_state_dict(ours.remap_state_dict(theirs.state_dict()))
                differences["torch"].append(ours(x)[0] - theirs(x)[0])
        axes = Axes("Differences between forms", "step", "at most", "y")
        curves = [
            Curve(axes, range(1, 41), worst.clamp_min(1e-9).tolist(), name)
            for name, worst in (
                (name, torch.stack(found).abs().amax((0, 1, 3)))
                for name, found in differences.items()
            )
        ]
        values = {
            name: max(float(d.abs().max()) for d in found) for name, found in differences.items()
        }
        return Measured(values, curves)


class Speed(Measurement):
    """Time of the kernel against a loop over steps in PyTorch: ``forward`` and ``both`` ways.

    Args:
        batch, length, heads, head_dim: of an LSTM.
        repeats: times of which the median counts.
    """

    def __init__(
        self,
        batch: int = 16,
        length: int = 128,
        heads: int = 4,
        head_dim: int = 64,
        repeats: int = 5,
    ) -> None:
        self.shape, self.repeats = (batch, length, 4, heads, head_dim), repeats

    def measure(self, seed: int) -> Measured:
        """Ratios at the full length, the kernel being 1; drawn at shorter ones as well."""
        torch.manual_seed(seed)
        heads, D = self.shape[3:]
        Wx = torch.randn(self.shape, requires_grad=True)
        R = (torch.randn(4, heads, D, D) / D**0.5).requires_grad_()
        b = torch.randn(4, heads, D, requires_grad=True)

        def forward(op: Callable, inputs: Tensor) -> None:
            with torch.no_grad():
                op(inputs, R, b, cell="lstm")

        def both(op: Callable, inputs: Tensor) -> None:
            torch.autograd.grad(op(inputs, R, b, cell="lstm")[0][0].sum(), (Wx, R, b))

        axes = Axes("Time of a loop over steps, one call being 1", "steps", "times as long")
        lengths = [self.shape[1] // 4, self.shape[1]]
        curves, ratios = [], {}
        for name, run in (("forward", forward), ("both", both)):
            found = []
            for length in lengths:
                ours, theirs = (
                    self._median(run, op, Wx[:, :length])
                    for op in (recurrent_cell, recurrent_cell_reference)
                )
                found.append(theirs / ours)
            ratios[name] = found[-1]
            curves.append(Curve(axes, lengths, found, name))
        return Measured(ratios, curves)

    def _median(self, run: Callable, op: Callable, inputs: Tensor) -> float:
        times = []
        for _ in range(self.repeats + 1):  # the first one warms up
            start = time.perf_counter()
            run(op, inputs)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])
