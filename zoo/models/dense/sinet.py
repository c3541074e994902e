"""SINet: extremely light portrait segmentation with spatial squeeze and information blocking.

Park et al., "SINet: Extreme Lightweight Portrait Segmentation Networks with Spatial Squeeze Modules
and Information Blocking Decoder", WACV 2020 (arXiv 1911.09099), and the larger form for Cityscapes
that its authors published beside it. Modules carry the names of the authors' checkpoints, which so
load as they are; ``p``, ``q`` and ``chnn`` are the authors' arguments. Logits and gradients of both
forms agree with the authors' code to 1e-5 of the largest value, on random weights and on theirs
(clovaai/ext_portrait_segmentation at 9bc1bad, clovaai/c3_sinet at dd91638).

The published portrait weights expect ``((pixel - mean) / std) / 255`` of BGR pixels in 0..255, see
:data:`zoo.data.dense.portraits.PORTRAIT_MEAN`; the division by 255 comes after the standardisation.
Those for Cityscapes expect RGB with ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from zoo.errors import ZooError, check_choice
from zoo.layers.sizes import check_multiple
from zoo.models.registry import register_model

#: (kernel, pooling) of the branches of each S2 module, from the first to the last.
Config = Sequence[Sequence[tuple[int, int]]]
#: Two modules at 1/4, then eight at 1/8.
PORTRAIT: Config = (
    ((3, 1), (5, 1)),
    ((3, 1), (3, 1)),
    ((3, 1), (5, 1)),
    ((3, 1), (3, 1)),
    ((5, 1), (3, 2)),
    ((5, 2), (3, 4)),
    ((3, 1), (3, 1)),
    ((5, 1), (5, 1)),
    ((3, 2), (3, 4)),
    ((3, 1), (5, 2)),
)
#: Three modules at 1/8, then ten at 1/16.
CITYSCAPES: Config = (
    ((3, 1), (5, 1)),
    ((3, 0), (3, 1)),
    ((3, 0), (3, 1)),
    ((3, 1), (5, 1)),
    ((3, 0), (3, 1)),
    ((5, 1), (5, 4)),
    ((3, 2), (5, 8)),
    ((3, 1), (5, 1)),
    ((3, 1), (5, 1)),
    ((3, 0), (3, 1)),
    ((5, 1), (5, 8)),
    ((3, 2), (5, 4)),
    ((3, 0), (5, 2)),
)

Gate = Literal["softmax", "sigmoid", "open"]


class LightNet(nn.Module):
    """A network in which one weight decay does not fit all parameters."""

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """None for depthwise kernels, a hundredth for what is no kernel (the authors' settings)."""
        dense = [p for p in self.parameters() if p.ndim == 4 and p.shape[1] > 1]
        depthwise = [p for p in self.parameters() if p.ndim == 4 and p.shape[1] == 1]
        rest = [p for p in self.parameters() if p.ndim != 4]
        return [
            {"params": dense, "weight_decay": weight_decay},
            {"params": depthwise, "weight_decay": 0.0},
            {"params": rest, "weight_decay": weight_decay / 100},
        ]


class SINet(LightNet):
    """Portrait segmentation (paper, section 3).

    ``forward``: image [B, 3, H, W] -> logits [B, num_classes, H, W], H and W multiples of 32.
    ``encoder``: image -> logits [B, num_classes, H/8, W/8], the first training stage.

    Args:
        num_classes: classes.
        p, q: S2 modules at 1/4 and at 1/8; ``chnn``: 4 channels more for each step above 1.
        gate: where low-level detail passes. ``softmax``: as published, where the coarse prediction
            is uncertain; with one class nothing passes, since softmax over one class is 1.
            ``sigmoid``: the same idea for one class. ``open``: everywhere, a plain skip connection.
        config: branches of the modules; those at 1/8 begin with the third, whatever ``p`` is.
    """

    stride = 32

    def __init__(
        self,
        num_classes: int = 2,
        p: int = 2,
        q: int = 8,
        chnn: int = 1,
        gate: Gate = "softmax",
        config: Config = PORTRAIT,
    ) -> None:
        super().__init__()
        check_choice("gate", gate, get_args(Gate))
        self.num_classes, self.gate = num_classes, gate
        self.encoder = Encoder(num_classes, p, q, chnn, config)
        self.bn_3 = _norm(num_classes)
        self.level2_C = ConvBNAct(48 + 4 * (chnn - 1), num_classes, 1)
        self.bn_2 = _norm(num_classes)
        self.classifier = nn.Sequential(
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.Conv2d(num_classes, num_classes, 3, padding=1, bias=False),
        )
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> logits at full size."""
        return self.decode(image)[0]

    def decode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image -> logits [B, C, H, W] and the gate of low-level detail [B, 1, H/4, W/4]."""
        check_multiple(image, self.stride)
        return self.combine(*self.encoder.features(image))

    def combine(self, detail: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 48, H/4, W/4] and [B, 144, H/8, W/8] -> the same as :meth:`decode`."""
        stage1 = self.bn_3(self.up(self.encoder.classifier(coarse)))  # [B, C, H/4, W/4]
        gate = uncertainty(stage1, self.gate)
        stage2 = self.bn_2(self.up(self.level2_C(detail) * gate + stage1))  # [B, C, H/2, W/2]
        return self.classifier(stage2), gate


class Encoder(nn.Module):
    """Three stages of halved size; S2 modules in the last two."""

    def __init__(
        self, num_classes: int, p: int = 2, q: int = 8, chnn: int = 1, config: Config = PORTRAIT
    ) -> None:
        super().__init__()
        _check_depths(p, q, 2, config)
        dim2, dim3 = (dim + 4 * (chnn - 1) for dim in (48, 96))
        self.level1 = ConvBNAct(3, 12, 3, stride=2)
        self.level2_0 = SqueezedDownsample(12, 16, reduction=1)
        self.level2 = _s2_modules(16, dim2, config[:p])
        self.BR2 = BNAct(16 + dim2)
        self.level3_0 = SqueezedDownsample(16 + dim2, dim2, reduction=2)
        self.level3 = _s2_modules(dim2, dim3, config[2 : 2 + q])
        self.BR3 = BNAct(dim2 + dim3)
        self.classifier = _Conv(dim2 + dim3, num_classes)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image -> features of the last two stages."""
        x = self.level2_0(self.level1(image))  # [B, 16, H/4, W/4]
        detail = self.level2(x)
        y = self.level3_0(self.BR2(torch.cat([x, detail], 1)))  # [B, 48, H/8, W/8]
        return detail, self.BR3(torch.cat([y, self.level3(y)], 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image -> logits [B, C, H/8, W/8]."""
        return self.classifier(self.features(image)[1])


class SINetCityscapes(LightNet):
    """The form for street scenes: one stage more, two blocking steps, kernels in two bands.

    ``forward``: image [B, 3, H, W] -> logits [B, num_classes, H/2, W/2], H and W multiples of 128;
    while training, a pair of these and the encoder's logits [B, num_classes, H/16, W/16], for an
    auxiliary loss.

    Args:
        num_classes: classes.
        p, q: S2 modules at 1/8 and at 1/16, half of the latter on more channels.
        chnn, gate, config: see :class:`SINet`.
    """

    stride = 128

    def __init__(
        self,
        num_classes: int = 19,
        p: int = 3,
        q: int = 10,
        chnn: int = 4,
        gate: Gate = "softmax",
        config: Config = CITYSCAPES,
    ) -> None:
        super().__init__()
        check_choice("gate", gate, get_args(Gate))
        self.num_classes, self.gate = num_classes, gate
        self.encoder = CityscapesEncoder(num_classes, p, q, chnn, config)
        self.bn_4 = _norm(num_classes)
        self.level3_C = ConvBNAct(48 + 4 * (chnn - 1), num_classes, 1)
        self.bn_3 = _norm(num_classes)
        self.classifier = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Image -> logits at half size."""
        check_multiple(image, self.stride)
        low, detail, coarse = self.encoder.features(image)
        encoded = self.encoder.classifier(coarse)  # [B, C, H/16, W/16]
        stage1 = self.bn_4(_up2(encoded))
        stage2 = self.level3_C(detail) * uncertainty(stage1, self.gate) + stage1  # H/8
        stage2 = self.bn_3(_up2(stage2))
        logits = self.classifier(low * uncertainty(stage2, self.gate) + stage2)  # H/4 -> H/2
        return (logits, encoded) if self.training else logits


class CityscapesEncoder(nn.Module):
    """Four stages of halved size; S2 modules in the last two."""

    def __init__(
        self, num_classes: int, p: int = 3, q: int = 10, chnn: int = 4, config: Config = CITYSCAPES
    ) -> None:
        super().__init__()
        _check_depths(p, q, p, config)
        dim2, dim3, dim4 = (dim + 4 * (chnn - 1) for dim in (48, 72, 96))
        self.level1 = ConvBNAct(3, 16, 3, stride=2)
        self.level2_0 = SqueezedDownsample(16, num_classes, reduction=1)
        self.level3_0 = SqueezedDownsample(num_classes, 24, reduction=1)
        self.level3 = _s2_modules(24, dim2, config[:p], bands=True)
        self.BR3 = BNAct(24 + dim2)
        self.level4_0 = SqueezedDownsample(24 + dim2, dim2, reduction=2)
        half = p + q // 2
        self.level4 = nn.Sequential(
            *_s2_modules(dim2, dim3, config[p:half], bands=True),
            *_s2_modules(dim3, dim4, config[half : p + q], bands=True),
        )
        self.BR4 = BNAct(dim2 + dim4)
        self.classifier = _Conv(dim2 + dim4, num_classes)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image -> features at 1/4, 1/8 and 1/16."""
        low = self.level2_0(self.level1(image))
        x = self.level3_0(low)
        detail = self.level3(x)
        y = self.level4_0(self.BR3(torch.cat([x, detail], 1)))
        return low, detail, self.BR4(torch.cat([y, self.level4(y)], 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image -> logits [B, C, H/16, W/16]."""
        return self.classifier(self.features(image)[2])


def uncertainty(logits: Tensor, gate: Gate) -> Tensor:
    """[B, C, H, W] -> [B, 1, H, W], 1 - confidence (eq. 1); gradients flow through it."""
    if gate == "open":
        return torch.ones_like(logits[:, :1])
    if gate == "sigmoid":
        return 1 - torch.maximum(logits.sigmoid(), (-logits).sigmoid()).amax(1, keepdim=True)
    return 1 - logits.softmax(1).amax(1, keepdim=True)


class S2Module(nn.Module):
    """Grouped reduction, channel shuffle, S2 blocks side by side (section 3.1).

    Args:
        in_chans, out_chans: channels; the blocks share the latter, the first takes the rest.
        branches: (kernel, pooling) of each block.
        residual: add the input.
        bands: see :class:`S2Block`.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        branches: Sequence[tuple[int, int]],
        residual: bool,
        bands: bool,
    ) -> None:
        super().__init__()
        self.groups = len(branches)
        share, rest = divmod(out_chans, self.groups)
        self.c1 = _Conv(in_chans, share, groups=self.groups)
        self.shuffle = nn.ChannelShuffle(self.groups)
        for i, branch in enumerate(branches):
            block = S2Block(share, share + (rest if i == 0 else 0), *branch, bands)
            self.add_module(f"d{i + 1}", block)
        self.BR = BNAct(out_chans)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H, W]."""
        y = self.shuffle(self.c1(x))
        y = torch.cat([self.get_submodule(f"d{i + 1}")(y) for i in range(self.groups)], 1)
        return self.BR(x + y if self.residual else y)


class S2Block(nn.Module):
    """Depthwise convolution on average-pooled maps: a wide view for little work.

    Args:
        in_chans, out_chans: channels.
        kernel: side of the depthwise kernel.
        pool: side of the pooling window; 1: none; 0 (with ``bands``): a plain 3x3 kernel.
        bands: replace the kernel by the sum of a column and a row.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel: int, pool: int, bands: bool) -> None:
        super().__init__()
        depthwise = dict(groups=in_chans, bias=False)
        self.bands = bands and pool > 0
        if self.bands:
            pad = kernel // 2
            self.vertical = nn.Conv2d(
                in_chans, in_chans, (kernel, 1), padding=(pad, 0), **depthwise
            )
            self.horizontal = nn.Conv2d(
                in_chans, in_chans, (1, kernel), padding=(0, pad), **depthwise
            )
            self.B_v, self.B_h = _norm(in_chans), _norm(in_chans)
        else:
            conv = nn.Conv2d(in_chans, in_chans, kernel, padding=kernel // 2, **depthwise)
            self.conv = nn.Sequential(conv, _norm(in_chans))
        self.act_conv1x1 = nn.Sequential(
            nn.PReLU(in_chans), nn.Conv2d(in_chans, out_chans, 1, bias=False)
        )
        self.bn = _norm(out_chans)
        squeeze = pool > 1
        self.down = nn.AvgPool2d(pool) if squeeze else nn.Identity()
        self.up = nn.UpsamplingBilinear2d(scale_factor=pool) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H, W]."""
        x = self.down(x)
        if self.bands:
            y = self.B_v(self.vertical(x)) + self.B_h(self.horizontal(x))
        else:
            y = self.conv(x)
        return self.bn(self.up(self.act_conv1x1(y)))


class SqueezedDownsample(nn.Module):
    """Depthwise 3x3 of stride 2, channel weights, pointwise convolution."""

    def __init__(self, in_chans: int, out_chans: int, reduction: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_chans, in_chans, 3, stride=2, padding=1, groups=in_chans, bias=False),
            ChannelWeights(in_chans, reduction),
            nn.Conv2d(in_chans, out_chans, 1, bias=False),
        )
        self.bn, self.act = _norm(out_chans), nn.PReLU(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H/2, W/2]."""
        return self.act(self.bn(self.conv(x)))


class ChannelWeights(nn.Module):
    """Squeeze and excitation without a sigmoid at its end."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        inner = dim // reduction
        layers: list[nn.Module] = [nn.Linear(dim, inner), nn.PReLU(inner)]
        if reduction > 1:
            layers += [nn.Linear(inner, dim), nn.PReLU(dim)]
        self.dense = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return x * self.dense(x.mean((2, 3)))[:, :, None, None]


class BNAct(nn.Module):
    """Batch norm and PReLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn, self.act = _norm(dim), nn.PReLU(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return self.act(self.bn(x))


class ConvBNAct(BNAct):
    """Convolution, batch norm and PReLU."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int, stride: int = 1) -> None:
        super().__init__(out_chans)
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H/stride, W/stride]."""
        return super().forward(self.conv(x))


class _Conv(nn.Module):
    """Pointwise convolution, one level deeper as in the authors' checkpoints."""

    def __init__(self, in_chans: int, out_chans: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _s2_modules(
    in_chans: int, out_chans: int, config: Config, bands: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        *(
            S2Module(out_chans if i else in_chans, out_chans, branches, i > 0, bands)
            for i, branches in enumerate(config)
        )
    )


def _check_depths(p: int, q: int, start: int, config: Config) -> None:
    most = len(config) - start
    if not (1 <= p <= len(config) and 2 <= q <= most):
        raise ZooError(
            f"p={p} and q={q} S2 modules, expected 1 to {len(config)} and 2 to {most}, as many as "
            "config describes"
        )


def _norm(dim: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(dim, eps=1e-3)


def _up2(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear")


@register_model(
    source="https://github.com/clovaai/ext_portrait_segmentation/raw/"
    "9bc1bada1cb7bd17a3a80a2964980f4b4befef5b/result/SINet/SINet.pth",
    parameters=86_910,
)
def sinet(**kwargs: Any) -> SINet:
    """SINet for portraits, 86,910 parameters."""
    return SINet(**kwargs)


@register_model(
    source="https://github.com/clovaai/c3_sinet/raw/"
    "dd916387d759b792e0b371a395f8f82ac49731dc/result/SINet/SINet.pth",
    parameters=119_418,
)
def sinet_cityscapes(**kwargs: Any) -> SINetCityscapes:
    """SINet for Cityscapes' 19 classes, 119,418 parameters."""
    return SINetCityscapes(**kwargs)
