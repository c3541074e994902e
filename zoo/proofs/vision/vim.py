"""Vim: a class token in the middle needs both directions to see the whole image (section 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from zoo.data.synthetic.cues import CUE_CHANNELS, CUE_CLASSES, cue_maps
from zoo.models.vision.vim import Vim
from zoo.proofs.base import Measured
from zoo.proofs.synthetic import Samples, SyntheticTask, TrainedNetwork


class CueInAnyPatch(SyntheticTask):
    """The class of a cue that one cell of a map holds.

    The groups ``first_half`` and ``second_half`` say where the cue is, row by row.

    Args:
        size: side of the map.
    """

    classes = CUE_CLASSES

    def __init__(self, size: int) -> None:
        self.size = size
        guess = 1 / CUE_CLASSES
        self.known = {"guess": guess, "best if half is seen": (1 + guess) / 2}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Maps [B, channels, H, W]."""
        maps, classes, cells = cue_maps(count, self.size, self.size, generator)
        first = cells < self.size**2 // 2
        return Samples((maps,), classes, {"first_half": first, "second_half": ~first})


class MiddleToken(TrainedNetwork):
    """What the class token in the middle of the patches gets to know.

    Measures, beside what :class:`TrainedNetwork` does, ``reached``: the share of patches that the
    token depends on.

    Args:
        bimamba_type: "v2" for Vim's two directions, "none" for the forward one alone.
        size: side of the maps in cells; each is a patch.
        dim, depth: of the network.
        steps, lr: of the training.
    """

    def __init__(
        self,
        bimamba_type: str,
        size: int = 4,
        dim: int = 32,
        depth: int = 2,
        steps: int = 300,
        lr: float = 1e-2,
    ) -> None:
        super().__init__(CueInAnyPatch(size), steps, lr=lr)
        self.bimamba_type, self.size, self.dim, self.depth = bimamba_type, size, dim, depth

    def network(self) -> nn.Module:
        """A small Vim."""
        return Vim(
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

    def inspect(self, network: nn.Module, samples: Samples) -> Measured:
        """How strongly the answer depends on each patch."""
        one = samples.inputs[0][:1].double().requires_grad_()
        (gradient,) = torch.autograd.grad(network.double()(one).square().sum(), one)
        seen = gradient[0].ne(0).any(dim=0).double()
        return Measured(
            {"reached": seen.mean().item()},
            pictures=[{"patches that the token depends on": seen.numpy()}],
        )
