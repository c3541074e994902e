"""PlainMamba: continuous scans that know their direction (section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.synthetic.cues import bit_maps
from zoo.layers.scan_orders import snake
from zoo.models.vision.plainmamba import PlainMamba2D
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit


class Continuity(Measurement):
    """Share of the steps of a scan that go to a neighbouring cell, over the four scans.

    Args:
        order: "snake", the paper's; or "raster", the line-by-line scans of VMamba.
        size: side of the map.
    """

    def __init__(self, order: str, size: int = 14) -> None:
        self.order, self.size = order, size

    def measure(self) -> dict[str, float]:
        """Count steps of length one."""
        cells = torch.arange(self.size**2).view(self.size, self.size)
        if self.order == "snake":
            index = snake(self.size, self.size).index
        else:
            rows, columns = cells.flatten(), cells.T.flatten()
            index = torch.stack([rows, rows.flip(0), columns, columns.flip(0)])
        steps = (index // self.size).diff().abs() + (index % self.size).diff().abs()
        return {"neighbours": steps.eq(1).double().mean().item()}


class WhichNeighbour(Measurement):
    """Accuracy with which a cell learns the bit of the neighbour on its right.

    One mixer without its convolution, four scans with the same parameters. The sum of their outputs
    does not change when neighbours change places, unless the scans say how they came into a cell:
    without directions, the best guess knows how many of the four bits are set, and is right in 11
    of 16 cases. Cells near the border, which scans enter otherwise, are not counted.

    Args:
        directions: learn the direction vectors, or leave them at zero.
        size: side of the maps.
        dim: width of the mixer.
        steps, batch_size, lr: of the training.
        test_maps: maps that are measured.
        seed: of weights and maps.
    """

    def __init__(
        self,
        directions: bool,
        size: int = 10,
        dim: int = 32,
        steps: int = 400,
        batch_size: int = 64,
        lr: float = 5e-3,
        test_maps: int = 1024,
        seed: int = 0,
    ) -> None:
        self.directions, self.size, self.dim = directions, size, dim
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_maps, self.seed = test_maps, seed

    def measure(self) -> dict[str, float]:
        """Train, then count right cells of new maps."""
        torch.manual_seed(self.seed)
        grid = (self.size, self.size)
        order = snake(*grid)
        stem = nn.Embedding(2, self.dim)
        mixer = PlainMamba2D(self.dim, conv_size=1, bias=True, strict_official=False)
        head = nn.Sequential(nn.LayerNorm(self.dim), nn.Linear(self.dim, 2))
        network = nn.ModuleList([stem, mixer, head])
        if not self.directions:
            mixer.direction_Bs.requires_grad_(False).zero_()
        generator = torch.Generator().manual_seed(self.seed)
        inner = slice(2, self.size - 2)

        def predict(bits: Tensor) -> tuple[Tensor, Tensor]:
            x = stem(bits.flatten(1))  # [B, L, C]
            logits = head(x + mixer(x, grid, order)).unflatten(1, grid)
            return logits[:, inner, inner], bits[:, inner, 3 : self.size - 1]

        def loss(step: int) -> Tensor:
            logits, targets = predict(bit_maps(self.batch_size, *grid, generator))
            return F.cross_entropy(logits.flatten(0, 2), targets.flatten())

        fit(network, loss, self.steps, self.lr)
        with torch.inference_mode():
            logits, targets = predict(bit_maps(self.test_maps, *grid, generator))
        return {"accuracy": (logits.argmax(dim=-1) == targets).float().mean().item()}
