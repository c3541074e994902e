"""VMamba: four scan directions carry a cue to every cell, one only onward (section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.synthetic.cues import CUE_CHANNELS, CUE_CLASSES, cue_maps
from zoo.layers.vss import VSSBlock
from zoo.models.vision.vmamba import parse_forward_type
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit, reach


def vss_block(forward_type: str, dim: int) -> VSSBlock:
    """A block without convolution and MLP: nothing but the scan connects two cells."""
    op, ssm = parse_forward_type(forward_type)
    ssm = {"d_state": 1, "ssm_ratio": 1.0, "d_conv": 1, "init": "v0", **ssm}
    return VSSBlock(dim, op, ssm, {"mlp_ratio": 0})


class CueBroadcast(Measurement):
    """Accuracy with which every cell learns the class of a cue that one cell holds.

    Args:
        forward_type: VMamba's way of scanning.
        dim: width of the block.
        size: side of the maps.
        steps, batch_size, lr: of the training.
        test_maps: maps that are measured.
        seed: of weights and maps.
    """

    def __init__(
        self,
        forward_type: str,
        dim: int = 32,
        size: int = 8,
        steps: int = 400,
        batch_size: int = 64,
        lr: float = 3e-3,
        test_maps: int = 2048,
        seed: int = 0,
    ) -> None:
        self.forward_type, self.dim, self.size = forward_type, dim, size
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_maps, self.seed = test_maps, seed

    def measure(self) -> dict[str, float]:
        """Train, then count right cells of new maps."""
        torch.manual_seed(self.seed)
        network = nn.Sequential(
            nn.Linear(CUE_CHANNELS, self.dim),
            vss_block(self.forward_type, self.dim),
            nn.Linear(self.dim, CUE_CLASSES),
        )
        generator = torch.Generator().manual_seed(self.seed)

        def batch(count: int) -> tuple[Tensor, Tensor]:
            maps, classes, _ = cue_maps(count, self.size, self.size, generator)
            return maps.permute(0, 2, 3, 1), classes[:, None, None].expand(-1, self.size, self.size)

        def loss(step: int) -> Tensor:
            maps, targets = batch(self.batch_size)
            return F.cross_entropy(network(maps).permute(0, 3, 1, 2), targets)

        fit(network, loss, self.steps, self.lr)
        maps, targets = batch(self.test_maps)
        with torch.inference_mode():
            right = network(maps).argmax(dim=-1) == targets
        return {"accuracy": right.float().mean().item()}


class Reach(Measurement):
    """Share of the cells before and after the centre, row by row, that the centre depends on.

    Args:
        forward_type: VMamba's way of scanning.
        size: side of the map.
    """

    def __init__(self, forward_type: str, size: int = 8) -> None:
        self.forward_type, self.size = forward_type, size

    def measure(self) -> dict[str, float]:
        """Look at the gradient of one output to all inputs."""
        torch.manual_seed(0)
        block = vss_block(self.forward_type, 8).double()
        x = torch.randn(1, self.size, self.size, 8, dtype=torch.float64)
        centre = (self.size // 2, self.size // 2)
        reached = reach(block, x, centre).flatten()
        place = centre[0] * self.size + centre[1]
        return {
            "before": reached[:place].double().mean().item(),
            "after": reached[place + 1 :].double().mean().item(),
        }
