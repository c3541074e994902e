"""Vim: a class token in the middle needs both directions to see the whole image (section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.synthetic.cues import CUE_CHANNELS, CUE_CLASSES, cue_maps
from zoo.models.vision.vim import Vim
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit


class MiddleToken(Measurement):
    """What the class token in the middle of the patches gets to know.

    Args:
        bimamba_type: "v2" for Vim's two directions, "none" for the forward one alone.
        size: side of the maps in cells; each is a patch.
        dim, depth: of the network.
        steps, batch_size, lr: of the training.
        test_maps: maps that are measured.
        seed: of weights and maps.
    """

    def __init__(
        self,
        bimamba_type: str,
        size: int = 4,
        dim: int = 32,
        depth: int = 2,
        steps: int = 300,
        batch_size: int = 64,
        lr: float = 1e-2,
        test_maps: int = 2048,
        seed: int = 0,
    ) -> None:
        self.bimamba_type, self.size, self.dim, self.depth = bimamba_type, size, dim, depth
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_maps, self.seed = test_maps, seed

    def measure(self) -> dict[str, float]:
        """Accuracy for a cue in any patch, and the patches that the token depends on."""
        torch.manual_seed(self.seed)
        network = Vim(
            img_size=self.size,
            patch_size=1,
            stride=1,
            in_chans=CUE_CHANNELS,
            embed_dim=self.dim,
            depth=self.depth,
            num_classes=CUE_CLASSES,
            drop_path_rate=0.0,
            bimamba_type=self.bimamba_type,
            if_divide_out=self.bimamba_type == "v2",
        )
        generator = torch.Generator().manual_seed(self.seed)

        def loss(step: int) -> Tensor:
            maps, classes, _ = cue_maps(self.batch_size, self.size, self.size, generator)
            return F.cross_entropy(network(maps), classes)

        fit(network, loss, self.steps, self.lr)
        maps, classes, cells = cue_maps(self.test_maps, self.size, self.size, generator)
        with torch.inference_mode():
            right = (network(maps).argmax(dim=1) == classes).float()
        first_half = cells < self.size**2 // 2
        one = maps[:1].double().requires_grad_()
        (gradient,) = torch.autograd.grad(network.double()(one).square().sum(), one)
        seen = gradient.ne(0).any(dim=1).double()
        return {
            "accuracy": right.mean().item(),
            "first_half": right[first_half].mean().item(),
            "second_half": right[~first_half].mean().item(),
            "reached": seen.mean().item(),
        }
