"""Negative eigenvalues: which range can follow parity, and whether the scan's forms agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import check_choice
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2
from zoo.models.recurrent.negative_eigenvalues import DeltaNet
from zoo.ops import selective_scan, selective_scan_reference
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.recurrent._parity import TrainedParity


class Parity(TrainedParity):
    """One layer at parity; see :class:`zoo.proofs.recurrent._parity.TrainedParity`.

    Args:
        mixer: "deltanet" of two heads, "mamba" of 8 states and no convolution, or "mamba2".
        eig_range: "01" or "pm1".
        dim: width.
        steps: of the training.
    """

    def __init__(
        self, mixer: str, eig_range: str = "pm1", dim: int = 32, steps: int = 1200
    ) -> None:
        check_choice("mixer", mixer, ("deltanet", "mamba", "mamba2"))

        def block(width: int) -> nn.Module:
            if mixer == "deltanet":
                return DeltaNet(width, num_heads=2, eig_range=eig_range)
            if mixer == "mamba":
                return Mamba(width, d_state=8, d_conv=1, eig_range=eig_range)
            return Mamba2(width, d_state=8, d_conv=1, headdim=16, eig_range=eig_range)

        super().__init__(block, (4, 8, 16, 24, 32, 48, 64), dim=dim, steps=steps, lr=3e-3)


class Forms(Measurement):
    """What the scan with factors in (-1, 1) computes, in float64.

    Measures ``counted``, the share of positions among ``length`` at which the sign of a constructed
    channel is the parity; and largest differences, ``kernel`` and ``gradients`` between the kernel
    and the definition, ``steps`` between a Mamba mixer at once and step by step.

    Args:
        length: of the bits.
    """

    def __init__(self, length: int = 4096) -> None:
        self.length = length

    def measure(self, seed: int) -> Measured:
        """With random bits and random arguments."""
        torch.manual_seed(seed)
        signs, right = self._count()
        leaves = self._arguments()
        ours, exact = (
            op(*leaves, delta_softplus=True, return_last_state=True, eig_range="pm1")
            for op in (selective_scan, selective_scan_reference)
        )
        cotangent = torch.randn_like(exact[0])
        gradients = [
            torch.autograd.grad((out[0] * cotangent).sum() + out[1].sum(), leaves)
            for out in (ours, exact)
        ]
        values = {
            "counted": float(right.double().mean()),
            "kernel": _difference(ours, exact),
            "gradients": _difference(*gradients),
            "steps": self._steps(),
        }
        axes = Axes("A channel that counts, its first 32 bits", "bit", "state")
        return Measured(values, [Curve(axes, range(1, 33), signs[0, 0, :32].tolist(), "state")])

    def _count(self) -> tuple[Tensor, Tensor]:
        """A bit of 1 has the factor -1, one of 0 the factor 1."""
        bits = torch.randint(0, 2, (8, 1, self.length)).float()
        ones = torch.ones(8, 1, self.length)
        signs = selective_scan(
            torch.zeros_like(bits), bits, torch.full((1, 1), -1e4), ones, ones,
            initial_state=torch.ones(8, 1, 1), eig_range="pm1",
        )  # fmt: skip
        assert isinstance(signs, Tensor)
        return signs, (signs < 0) == (bits.cumsum(2) % 2 == 1)

    def _arguments(self) -> list[Tensor]:
        sizes = [(2, 6, 150), (2, 6, 150), (6, 4), (2, 4, 150), (2, 4, 150), (6,), (2, 6, 150)]
        given = [torch.randn(size, dtype=torch.float64) for size in sizes]
        given[2] = -given[2].abs()
        return [t.requires_grad_() for t in given]

    @torch.no_grad()
    def _steps(self) -> float:
        """Mamba and Mamba-2."""
        found = []
        for mixer in (Mamba(16, eig_range="pm1"), Mamba2(16, headdim=8, eig_range="pm1")):
            x = torch.randn(2, 40, 16, dtype=torch.float64)
            mixer = mixer.double()
            state = mixer.allocate_state(2)
            steps = [mixer(x[:, t : t + 1], state=state) for t in range(x.shape[1])]
            found.append(_difference([torch.cat(steps, 1)], [mixer(x)]))
        return max(found)


def _difference(found: object, expected: object) -> float:
    pairs = zip(found, expected, strict=True)  # type: ignore[call-overload]
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
