"""Fully convolutional Siamese U-Nets (Daudt et al., ICIP 2018): the baseline of change detection.

One encoder looks at both dates; the decoder gets its maps of both (``conc``) or their absolute
difference (``diff``). Log-probabilities agree with the authors' code
(rcdaudt/fully_convolutional_change_detection, commit 4dd8323) on random weights, and modules have
its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from zoo.errors import ZooError
from zoo.models.registry import register_model

#: Convolutions of the levels, fine to coarse.
DEPTHS = (2, 2, 3, 3)


class FCSiam(nn.Module):
    """Siamese U-Net: images [B, in_chans, H, W] before and after -> log-probabilities
    [B, num_classes, H, W], of any size from 16 pixels on.

    Args:
        fusion: how the decoder gets the maps of both dates.
        in_chans, num_classes: channels of the images and of the output.
        widths: channels of the four levels.
        dropout: of whole maps, after each convolution.
    """

    def __init__(
        self,
        fusion: Literal["conc", "diff"],
        in_chans: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.dropout = nn.Dropout2d(dropout)
        lower = [in_chans, *widths]
        for level, depth in enumerate(DEPTHS, start=1):
            width = widths[level - 1]
            for i in range(1, depth + 1):
                channels = lower[level - 1] if i == 1 else width
                self._add(f"{level}{i}", nn.Conv2d(channels, width, 3, padding=1))
        shares = 3 if fusion == "conc" else 2
        for level, depth in reversed(list(enumerate(DEPTHS, start=1))):
            width = widths[level - 1]
            up = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
            self.add_module(f"upconv{level}", up)
            for i in range(depth, 0, -1):
                channels = shares * width if i == depth else width
                out = width if i > 1 else lower[level - 1] if level > 1 else num_classes
                conv = nn.ConvTranspose2d(channels, out, 3, padding=1)
                self._add(f"{level}{i}d", conv, norm=(level, i) != (1, 1))

    def _add(self, name: str, conv: nn.Module, norm: bool = True) -> None:
        self.add_module(f"conv{name}", conv)
        if norm:
            self.add_module(f"bn{name}", nn.BatchNorm2d(conv.out_channels))

    def _apply_conv(self, name: str, x: Tensor) -> Tensor:
        x = self.get_submodule(f"conv{name}")(x)
        return self.dropout(self.get_submodule(f"bn{name}")(x).relu())

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps of the four levels, and the last one pooled."""
        maps, x = [], image
        for level, depth in enumerate(DEPTHS, start=1):
            for i in range(1, depth + 1):
                x = self._apply_conv(f"{level}{i}", x)
            maps.append(x)
            x = max_pool2d(x, 2)
        return [*maps, x]

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Log-probabilities."""
        if pre.shape != post.shape or min(pre.shape[-2:]) < 2 ** len(DEPTHS):
            raise ZooError(
                f"images of {list(pre.shape)} and {list(post.shape)}, expected one shape and sides "
                f"from {2 ** len(DEPTHS)} on"
            )
        *before, _ = self.encode(pre)
        *after, x = self.encode(post)
        for level, depth in reversed(list(enumerate(DEPTHS, start=1))):
            x = self.get_submodule(f"upconv{level}")(x)
            dates = before[level - 1], after[level - 1]
            missing = [a - b for a, b in zip(dates[0].shape[-2:], x.shape[-2:], strict=True)]
            x = pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
            lateral = dates if self.fusion == "conc" else [(dates[0] - dates[1]).abs()]
            x = torch.cat([x, *lateral], 1)
            for i in range(depth, 0, -1):
                last = (level, i) == (1, 1)
                x = self.conv11d(x) if last else self._apply_conv(f"{level}{i}d", x)
        return x.log_softmax(1)


@register_model(parameters=1_545_986)
def fc_siam_conc(**kwargs: Any) -> FCSiam:
    """FC-Siam-conc: 1.55 M parameters."""
    return FCSiam(**{"fusion": "conc", **kwargs})


@register_model(parameters=1_350_146)
def fc_siam_diff(**kwargs: Any) -> FCSiam:
    """FC-Siam-diff: 1.35 M parameters."""
    return FCSiam(**{"fusion": "diff", **kwargs})
