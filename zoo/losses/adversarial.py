"""Adversarial and perceptual losses of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from zoo.losses.vgg import VGG16Layers


def relativistic_lsgan(real: Tensor, fake: Tensor, generator: bool) -> Tensor:
    """Relativistic average least squares: real scores above the mean fake one by 1, and conversely.

    Args:
        real, fake: scores of a discriminator, any shape.
        generator: the generator's loss, in which real and fake change places.
    """
    sign = -1 if generator else 1
    return (
        (real - fake.mean() - sign).square().mean() + (fake - real.mean() + sign).square().mean()
    ) / 2


class VGGLoss(VGG16Layers):
    """Perceptual and style distance in VGG16's feature maps, as the inpainting paper's code has it.

    Content: relu1_1, 2_1, 3_1, 4_1, 5_1. Style: relu2_2, 3_3, 4_3, and for relu5_2 the block of
    conv5_1 (pooling, convolution, ReLU) twice, which is what that code computes.
    """

    #: Places after ReLUs in torchvision's ``vgg16().features``.
    CONTENT = (1, 6, 11, 18, 25)
    STYLE = (8, 15, 22)
    _BLOCK5 = slice(23, 26)

    def __init__(self) -> None:
        super().__init__(self._BLOCK5.stop)

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean absolute differences of feature maps and of their Gram matrices (over C H W).

        Args:
            image, target: [B, 3, H, W], 32 pixels or more; the paper's code gives them in -1..1.
        """
        a, b = self._maps(image), self._maps(target)
        content = [l1_loss(a[i], b[i]) for i in self.CONTENT]
        style = [l1_loss(_gram(a[i]), _gram(b[i])) for i in (*self.STYLE, -1)]
        return torch.stack(content).sum(), torch.stack(style).sum()

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        """The output of each layer, then that of the fifth block's second pass."""
        maps = []
        for layer in self.features:
            x = layer(x)
            maps.append(x)
        return [*maps, self.features[self._BLOCK5](x)]


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
