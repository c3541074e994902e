"""PlainMamba: continuous scans that know their direction (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.scan_orders import snake
from zoo.models.vision.plainmamba import PlainMamba2D
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement


class Continuity(Measurement):
    """Share of the steps of a scan that go to a neighbouring cell, over the four scans.

    Args:
        order: "snake", the paper's; or "raster", the line-by-line scans of VMamba.
        size: side of the map.
    """

    def __init__(self, order: str, size: int = 14) -> None:
        self.order, self.size = order, size

    seeded = False

    def measure(self, seed: int) -> Measured:
        """Count steps of length one, and draw the first scan."""
        cells = torch.arange(self.size**2).view(self.size, self.size)
        if self.order == "snake":
            index = snake(self.size, self.size).index
        else:
            rows, columns = cells.flatten(), cells.T.flatten()
            index = torch.stack([rows, rows.flip(0), columns, columns.flip(0)])
        steps = (index // self.size).diff().abs() + (index % self.size).diff().abs()
        rows, columns = index[0] // self.size, index[0] % self.size
        path = Axes(f"First of four scans: {self.order}", "column", "row", plane=True)
        return Measured(
            {"neighbours": steps.eq(1).double().mean().item()},
            [Curve(path, columns.tolist(), rows.tolist(), style="example")],
        )


class ScansAlone(PlainMamba2D):
    """The mixer without its convolution, between a shortcut: four scans of equal parameters.

    The sum of their outputs does not change when neighbours change places, unless the scans say how
    they came into a cell.

    Args:
        dim: width.
        directions: learn the direction vectors, or leave them at zero.
    """

    def __init__(self, dim: int, directions: bool) -> None:
        super().__init__(dim, conv_size=1, bias=True, strict_official=False)
        if not directions:
            self.direction_Bs.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[B, H, W, D] to the same."""
        grid = x.shape[1:3]
        mixed = super().forward(x.flatten(1, 2), grid, snake(*grid))
        return x + mixed.unflatten(1, grid)
