"""Learned perceptual image patch similarity (Zhang et al. 2018) with VGG16."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
import torchmetrics.functional.image
from torch import Tensor
from torch.nn.functional import normalize

from zoo.losses.vgg import VGG16Layers


class LPIPS(VGG16Layers):
    """Perceptual distance of pictures, as a loss or a score; see :meth:`forward`.

    The weights of the layers, which were fitted to people's judgement, come with torchmetrics.
    Agrees with it on random weights to 1e-6.
    """

    #: Places after ReLUs in torchvision's ``vgg16().features``: relu1_2, 2_2, 3_3, 4_3, 5_3.
    TAPS = (3, 8, 15, 22, 29)

    def __init__(self) -> None:
        super().__init__(max(self.TAPS) + 1)
        package = files(torchmetrics.functional.image) / "lpips_models" / "vgg.pth"
        with as_file(package) as path:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        for i in range(len(self.TAPS)):
            self.register_buffer(f"weight{i}", weights[f"lin{i}.model.1.weight"], persistent=False)
        # ImageNet's mean and deviation, for pictures in -1..1
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.register_buffer("scale", scale[:, None, None], persistent=False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1..1 twice -> distances [B]."""
        total = image.new_zeros(len(image))
        x, y = ((picture - self.shift) / self.scale for picture in (image, target))
        tap = 0
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in self.TAPS:
                difference = (normalize(x, dim=1) - normalize(y, dim=1)).square()
                weight = getattr(self, f"weight{tap}")
                total = total + (difference * weight).sum(1).mean((1, 2))
                tap += 1
        return total
