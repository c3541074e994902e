"""VMamba: four scan directions carry a cue to every cell, one only onward (section 4.2)."""

from __future__ import annotations

import torch

from zoo.layers.vss import VSSBlock
from zoo.models.vision.vmamba import parse_forward_type
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import reach


class ScanAlone(VSSBlock):
    """A block without convolution and MLP: nothing but the scan connects two cells.

    Args:
        dim: width.
        forward_type: VMamba's way of scanning.
    """

    def __init__(self, dim: int, forward_type: str) -> None:
        op, ssm = parse_forward_type(forward_type)
        ssm = {"d_state": 1, "ssm_ratio": 1.0, "d_conv": 1, "init": "v0", **ssm}
        super().__init__(dim, op, ssm, {"mlp_ratio": 0})


class Reach(Measurement):
    """Share of the cells before and after the centre, row by row, that the centre depends on.

    Args:
        forward_type: VMamba's way of scanning.
        size: side of the map.
    """

    def __init__(self, forward_type: str, size: int = 8) -> None:
        self.forward_type, self.size = forward_type, size

    def measure(self, seed: int) -> Measured:
        """Look at the gradient of one output to all inputs."""
        torch.manual_seed(seed)
        block = ScanAlone(8, self.forward_type).double()
        x = torch.randn(1, self.size, self.size, 8, dtype=torch.float64)
        centre = (self.size // 2, self.size // 2)
        reached = reach(block, x, centre)
        place = centre[0] * self.size + centre[1]
        cells = reached.flatten()
        picture = reached.double()
        picture[centre] = torch.nan  # where we look from
        return Measured(
            {
                "before": cells[:place].double().mean().item(),
                "after": cells[place + 1 :].double().mean().item(),
            },
            pictures=[{"cells that the centre depends on": picture.numpy()}],
        )
