"""M-SFANet and M-SegNet: crowd counting with multi-scale-aware modules.

Thanasutives et al., "Encoder-Decoder Based Convolutional Neural Networks with Multi-Scale-Aware
Modules for Crowd Counting", ICPR 2020 (arXiv 2003.05586). A density map whose sum is the count, and
in the two forms for ShanghaiTech an attention map that masks it. The two for UCF-QNRF use VGG19
without batch norm and have the density path alone. Modules carry the names of the authors'
checkpoints; the unused batch norm of ``conv_out`` is theirs too. Their bilinear upsampling aligns
corners except in the contextual module. With random weights, outputs and gradients of all four
agree with the authors' code to 2e-6 of the largest value
(Pongpisit-Thanasutives/Variations-of-SFANet-for-Crowd-Counting at de41c94).

Images are normalised with ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, max_unpool2d

from zoo.errors import ZooError
from zoo.layers.sizes import check_multiple
from zoo.models.registry import register_model

VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


class MSFANet(nn.Module):
    """VGG, CAN on its fourth stage, ASPP on its fifth, two decoders (paper, section III.A).

    ``forward``: image [B, 3, H, W], H and W multiples of 16 -> density [B, 1, H/2, W/2] (people per
    pixel of this map) and attention [B, 1, H/2, W/2] in 0..1; None with ``qnrf``.

    Args:
        width: channels of the first stage; the others follow in VGG's proportions.
        depths: convolutions of each VGG stage.
        context: with CAN and ASPP; False is plain SFANet.
        qnrf: the form for UCF-QNRF: no batch norm, no attention, absolute density.
    """

    stride = 16

    def __init__(
        self,
        width: int = 64,
        depths: Sequence[int] = VGG16,
        context: bool = True,
        qnrf: bool = False,
    ) -> None:
        super().__init__()
        if qnrf and not context:
            raise ZooError("context=False is the plain SFANet, which has no form for UCF-QNRF")
        self.qnrf = qnrf
        norm = not qnrf
        self.vgg = VGG(width, depths, norm)
        self.spm = ContextModules(8 * width, 4 * width, norm) if context else nn.Identity()
        top = (6 if qnrf else 4 if context else 8) * width
        channels = (top + 8 * width, 4 * width + 4 * width + top, 4 * width)
        if not qnrf:
            self.amp = Decoder(channels, width, norm)
            self.conv_att = BaseConv(width // 2, 1, 1, act=nn.Sigmoid())
        self.dmp = Decoder(channels, width, norm)
        self.conv_out = DensityHead(width // 2, norm)
        _init(self, norm)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Image -> density and attention."""
        check_multiple(image, self.stride)
        taps = self.spm(self.vgg(image)[1:])  # strides 2, 4, 8, 16
        if self.qnrf:
            return self.conv_out(self._decode(self.dmp, taps)).abs(), None
        attention = self.conv_att(self._decode(self.amp, taps))
        return self.conv_out(attention * self._decode(self.dmp, taps)), attention

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names are ours."""
        return _with_batch_counts(state_dict)

    def _decode(self, decoder: Decoder, taps: Sequence[Tensor]) -> Tensor:
        x2, x3, x4, x5 = taps
        # the UCF-QNRF form has its deepest map at stride 8 already
        at_8 = x5 if self.qnrf else _up(x5)
        y = _up(decoder.level1(torch.cat([at_8, x4], 1)))
        y = _up(decoder.level2(torch.cat([y, x3, _up(x5, 2 if self.qnrf else 4)], 1)))
        return decoder.level3(torch.cat([y, x2], 1))  # [B, width / 2, H/2, W/2]


class MSegNet(nn.Module):
    """The lighter form: max-pooling keeps its places and the decoder unpools (section III.B).

    In- and outputs as of :class:`MSFANet`.

    Args:
        width, depths: see :class:`MSFANet`; the ShanghaiTech form uses four stages.
        qnrf: the form for UCF-QNRF.
    """

    stride = 16

    def __init__(
        self, width: int = 64, depths: Sequence[int] = VGG16[:4], qnrf: bool = False
    ) -> None:
        super().__init__()
        self.qnrf = qnrf
        norm = not qnrf
        self.vgg = VGG(width, depths, norm)
        top = (8 + 4 + (2 if qnrf else 0)) * width
        channels = (top, 6 * width, 3 * width)
        if not qnrf:
            self.amp = Decoder(channels, width, norm)
            self.conv_att = BaseConv(width // 2, 1, 1, act=nn.Sigmoid())
        self.dmp = Decoder(channels, width, norm)
        if qnrf:
            self.dmp.reg_layer = _regression(8 * width, width)
        self.conv_out = DensityHead(width // 2, norm)
        _init(self, norm)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Image -> density and attention."""
        check_multiple(image, self.stride)
        pooled, places = [], []
        x = image
        for stage in self.vgg.stages[:4]:
            x, place = max_pool2d(self.vgg.run(stage, x), 2, return_indices=True)
            pooled.append(x)
            places.append(place)
        if self.qnrf:
            deep = _up(self.vgg.run(self.vgg.stages[4], x))
            taps = [*pooled, self.dmp.reg_layer(deep)]
            return self.conv_out(self._decode(self.dmp, taps, places)).abs(), None
        attention = self.conv_att(self._decode(self.amp, pooled, places))
        return self.conv_out(attention * self._decode(self.dmp, pooled, places)), attention

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names are ours."""
        return _with_batch_counts(state_dict)

    @staticmethod
    def _decode(decoder: Decoder, taps: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
        p1, p2, p3, p4, *deep = taps
        y = decoder.level1(torch.cat([*deep, max_unpool2d(p4, places[3], 2), p3], 1))
        y = decoder.level2(torch.cat([max_unpool2d(y, places[2], 2), p2], 1))
        return decoder.level3(torch.cat([max_unpool2d(y, places[1], 2), p1], 1))


class VGG(nn.Module):
    """VGG's convolutions under the names ``conv<stage>_<number>``.

    Args:
        width: channels of the first stage.
        depths: convolutions of each stage.
        norm: with batch norm.
    """

    def __init__(self, width: int, depths: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.stages: list[list[str]] = []
        chans = 3
        for stage, depth in enumerate(depths):
            out_chans = width * min(2**stage, 8)
            names = [f"conv{stage + 1}_{i + 1}" for i in range(depth)]
            for name in names:
                self.add_module(name, BaseConv(chans, out_chans, 3, norm))
                chans = out_chans
            self.stages.append(names)

    def run(self, stage: Sequence[str], x: Tensor) -> Tensor:
        """Apply the convolutions of one stage."""
        for name in stage:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image -> the output of each stage, strides 1, 2, 4, ..."""
        outputs = [self.run(self.stages[0], image)]
        for stage in self.stages[1:]:
            outputs.append(self.run(stage, max_pool2d(outputs[-1], 2)))
        return outputs

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's ``vgg16_bn`` or ``vgg19`` features -> our names; its classifier is left."""
        if not any(name.startswith("features.") for name in state_dict):
            return state_dict
        numbers = sorted({int(k.split(".")[1]) for k in state_dict if k.startswith("features.")})
        ours = [name for stage in self.stages for name in stage]
        kinds = ("conv", "bn") if any("running_mean" in k for k in state_dict) else ("conv",)
        parts = [f"{name}.{part}" for name in ours for part in kinds]
        if len(numbers) < len(parts):
            raise ZooError(f"{len(numbers)} layers in the checkpoint, expected {len(parts)} of VGG")
        places = dict(zip(numbers, parts, strict=False))
        result = {}
        for name, value in state_dict.items():
            group, number, *rest = name.split(".")
            if group == "features" and int(number) in places:
                result[".".join([places[int(number)], *rest])] = value
        return _with_batch_counts(result)


class ContextModules(nn.Module):
    """CAN on the fourth stage, ASPP on the fifth."""

    def __init__(self, in_chans: int, out_chans: int, norm: bool) -> None:
        super().__init__()
        self.assp = ASPP(in_chans, out_chans, (6, 12, 18) if norm else (12, 24, 36), norm)
        self.can = ContextualModule(in_chans)
        self.norm = norm
        if not norm:
            self.reg_layer = _regression(in_chans, out_chans // 4)

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Four taps -> four taps."""
        x2, x3, x4, x5 = taps
        deep = self.assp(x5)
        if not self.norm:
            deep = torch.cat([_up(deep), self.reg_layer(_up(x5))], 1)
        return [x2, x3, self.can(x4), deep]


class ContextualModule(nn.Module):
    """Averages over grids of several sizes, weighed by how much each differs (Liu et al. 2019)."""

    def __init__(self, dim: int, sizes: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(dim, dim, 1, bias=False))
            for s in sizes
        )
        self.bottleneck = nn.Conv2d(2 * dim, dim, 1)
        self.weight_net = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        grids = [interpolate(s(x), size=x.shape[2:], mode="bilinear") for s in self.scales]
        weights = [self.weight_net(x - grid).sigmoid() for grid in grids]
        context = sum(w * g for w, g in zip(weights, grids, strict=True)) / sum(weights)
        return self.bottleneck(torch.cat([context, x], 1)).relu()


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3)."""

    def __init__(self, in_chans: int, out_chans: int, dilations: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.aspp1 = AtrousConv(in_chans, out_chans, 1, 1, norm)
        for i, dilation in enumerate(dilations, start=2):
            self.add_module(f"aspp{i}", AtrousConv(in_chans, out_chans, 3, dilation, norm))
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_chans, out_chans, 1, bias=False)]
        self.global_avg_pool = nn.Sequential(
            *pooled, *([nn.BatchNorm2d(out_chans)] if norm else []), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * out_chans, out_chans, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chans) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H, W]."""
        branches = [getattr(self, f"aspp{i}")(x) for i in range(1, 5)]
        # an average over the whole map: the same value everywhere
        branches.append(self.global_avg_pool(x).expand_as(branches[0]))
        return self.dropout(self.bn1(self.conv1(torch.cat(branches, 1))).relu())


class AtrousConv(nn.Module):
    """Dilated convolution, batch norm if wanted, ReLU."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel: int, dilation: int, norm: bool
    ) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(
            in_chans,
            out_chans,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_chans) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H, W]."""
        return self.bn(self.atrous_conv(x)).relu()


class Decoder(nn.Module):
    """The convolutions of one path; ``conv1`` to ``conv7`` in three levels."""

    def __init__(self, channels: Sequence[int], width: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(channels[0], 4 * width, 1, norm)
        self.conv2 = BaseConv(4 * width, 4 * width, 3, norm)
        self.conv3 = BaseConv(channels[1], 2 * width, 1, norm)
        self.conv4 = BaseConv(2 * width, 2 * width, 3, norm)
        self.conv5 = BaseConv(channels[2], width, 1, norm)
        self.conv6 = BaseConv(width, width, 3, norm)
        self.conv7 = BaseConv(width, width // 2, 3, norm)

    def level1(self, x: Tensor) -> Tensor:
        """[B, C1, H, W] -> [B, 4 width, H, W]."""
        return self.conv2(self.conv1(x))

    def level2(self, x: Tensor) -> Tensor:
        """[B, C2, H, W] -> [B, 2 width, H, W]."""
        return self.conv4(self.conv3(x))

    def level3(self, x: Tensor) -> Tensor:
        """[B, C3, H, W] -> [B, width / 2, H, W]."""
        return self.conv7(self.conv6(self.conv5(x)))


class BaseConv(nn.Module):
    """Convolution with bias, batch norm if wanted, activation."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int,
        norm: bool = True,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out_chans) if norm else nn.Identity()
        self.act = act or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_chans, H, W]."""
        return self.act(self.bn(self.conv(x)))


class DensityHead(nn.Module):
    """Pointwise convolution to the density; the authors' checkpoints hold an unused batch norm."""

    def __init__(self, in_chans: int, unused_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 1, 1)
        if unused_norm:
            self.bn = nn.BatchNorm2d(1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 1, H, W]."""
        return self.conv(x)


def _regression(in_chans: int, out_scale: int) -> nn.Sequential:
    """Two convolutions down to ``2 * out_scale`` channels."""
    return nn.Sequential(
        nn.Conv2d(in_chans, 4 * out_scale, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4 * out_scale, 2 * out_scale, 3, padding=1),
        nn.ReLU(),
    )


def _up(x: Tensor, factor: int = 2) -> Tensor:
    return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


def _with_batch_counts(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files of older PyTorch, and of synchronised batch norm, do not count the batches."""
    ends = "running_mean", "num_batches_tracked"
    counts = {n.replace(*ends): torch.tensor(0) for n in state_dict if n.endswith(ends[0])}
    return counts | state_dict


def _init(model: nn.Module, norm: bool) -> None:
    """Normal(0, 0.01) with batch norm, PyTorch's own without; Kaiming in ASPP."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if norm and "assp" in name:
            nn.init.kaiming_normal_(module.weight)
        elif norm or ".can." in name:
            nn.init.normal_(module.weight, std=0.01)
            if norm and module.bias is not None and ".can." not in name:
                nn.init.zeros_(module.bias)


@register_model(parameters=22_904_390)
def m_sfanet(**kwargs: Any) -> MSFANet:
    """M-SFANet for ShanghaiTech, 22,904,390 parameters."""
    return MSFANet(**kwargs)


@register_model(parameters=9_747_526)
def m_segnet(**kwargs: Any) -> MSegNet:
    """M-SegNet for ShanghaiTech, 9,747,526 parameters."""
    return MSegNet(**kwargs)


@register_model(parameters=28_618_113)
def m_sfanet_qnrf(**kwargs: Any) -> MSFANet:
    """M-SFANet for UCF-QNRF on VGG19, 28,618,113 parameters."""
    return MSFANet(**{"depths": VGG19, "qnrf": True} | kwargs)


@register_model(parameters=22_583_681)
def m_segnet_qnrf(**kwargs: Any) -> MSegNet:
    """M-SegNet for UCF-QNRF on VGG19, 22,583,681 parameters."""
    return MSegNet(**{"depths": VGG19, "qnrf": True} | kwargs)
