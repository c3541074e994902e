"""U-Net with a pluggable upsampler (Ronneberger et al. 2015, with batch norm)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from zoo.layers.sizes import check_multiple

#: (channels of the coarse map, channels of the lateral map) -> module(coarse, lateral).
Upsampler = Callable[[int, int], nn.Module]


class UNet(nn.Module):
    """Encoder and decoder with lateral connections; convolutions start from Kaiming's values.

    ``forward``: [B, in_chans, H, W] -> [B, out_chans, H, W], H and W multiples of ``stride``.

    Args:
        in_chans, out_chans: channels of image and output.
        widths: channels of the encoder's levels, fine to coarse.
        upsampler: makes the module that brings the coarse map to the lateral's size and channels;
            it gets both.
        concat: give the decoder the lateral map beside the upsampled one.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        widths: Sequence[int],
        upsampler: Upsampler,
        concat: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.concat = 2 ** (len(widths) - 1), concat
        self.enc = nn.ModuleList(
            double_conv(i, o) for i, o in zip([in_chans, *widths], widths, strict=False)
        )
        pairs = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(upsampler(low, high) for low, high in pairs)
        self.dec = nn.ModuleList(double_conv((1 + concat) * high, high) for _, high in pairs)
        self.head = nn.Conv2d(widths[0], out_chans, 1)
        for module in [*self.enc.modules(), *self.dec.modules()]:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Image -> output at the same size."""
        check_multiple(image, self.stride)
        x, laterals = image, []
        for level, block in enumerate(self.enc):
            x = block(max_pool2d(x, 2) if level else x)
            laterals.append(x)
        for up, block, lateral in zip(self.up, self.dec, laterals[-2::-1], strict=True):
            x = up(x, lateral)
            x = block(torch.cat([x, lateral], 1) if self.concat else x)
        return self.head(x)


def double_conv(in_chans: int, out_chans: int) -> nn.Sequential:
    """Twice convolution 3x3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_chans),
        nn.ReLU(),
        nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_chans),
        nn.ReLU(),
    )


class BilinearUp(nn.Module):
    """Twice the size bilinearly, then a pointwise convolution; the lateral map is not looked at."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(low, high, 1)

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """[B, low, h, w] -> [B, high, 2h, 2w]."""
        return self.skip(interpolate(coarse, scale_factor=2, mode="bilinear"))


class TransposedUp(nn.Module):
    """Transposed convolution of 2x2; the lateral map is not looked at."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(low, high, 2, stride=2)

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """[B, low, h, w] -> [B, high, 2h, 2w]."""
        return self.conv(coarse)
