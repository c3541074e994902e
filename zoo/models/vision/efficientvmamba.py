"""EfficientVMamba (Pei et al., AAAI 2025, arXiv 2403.09977).

Two stages of blocks that scan every position once (atrous sampling) beside a convolution, then two
stages of inverted residuals. Outputs and gradients agree with the authors' code
(TerryPei/EfficientVMamba, commit 0bc5ee2) on random weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, Mlp, SqueezeExcite
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.ss2d import SS2D, depthwise_conv
from zoo.layers.vss import conv_downsample, stem_v1
from zoo.models.vision._backbone import drop_path_rates, register_backbone
from zoo.models.vision._staged import PLACES, OutNorms, Stage, StagedBackbone


class EfficientVMamba(StagedBackbone):
    """EfficientVMamba classifier and feature extractor.

    Images of any size from ``patch_size`` on. Arguments have the names of the authors'
    ``EfficientVSSM``, which ignores ``d_state`` and ``dt_rank`` and always takes the defaults.

    Args:
        patch_size: side of a patch, stride of the stem.
        in_chans: input channels.
        num_classes: outputs; 0 for features only.
        depths: blocks of each stage; the first two scan, the others convolve.
        dims: channels of each stage, or of the first, each next having twice as many.
        d_state, dt_rank, ssm_ratio: see :class:`zoo.layers.ss2d.SS2D`.
        mlp_ratio: width of an MLP after each scanning block over the block's; 0 for none.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        patch_norm: norm in the stem.
        downsample_version: "v1" patch merging, "v2" 2x2 convolution.
        scan: "atrous", or "cross2d" for four scans of every position, as in VMamba.
        global_pool: pooling before the classifier: avg, max, avgmax, or "" for none.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = 96,
        d_state: int = 16,
        dt_rank: int | str = "auto",
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        downsample_version: str = "v1",
        scan: str = "atrous",
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if downsample_version not in ("v1", "v2"):
            raise ZooError(f"downsample_version is v1 or v2, not {downsample_version}")
        downsample = PatchMerging if downsample_version == "v1" else conv_downsample(2, 0)
        norm = nn.LayerNorm if patch_norm else nn.Identity
        self.patch_embed = stem_v1(in_chans, dims[0], patch_size, norm)
        self.min_size = patch_size * (2 ** (len(dims) - 1) if downsample_version == "v2" else 1)

        ssm = {"d_state": d_state, "dt_rank": dt_rank, "ssm_ratio": ssm_ratio, "scan": scan}
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = [
                EVSSBlock(dim, ssm, mlp_ratio, next(rates))
                if i < 2
                else InvertedResidual(dim, next(rates))
                for _ in range(depth)
            ]
            down = downsample(dim, dims[i + 1]) if i + 1 < len(dims) else nn.Identity()
            stages.append(Stage(blocks, down))
        final_norm = nn.LayerNorm(dims[-1])
        self.finish(stages, dims, patch_size, final_norm, num_classes, drop_rate, global_pool)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to ours: their convolutional stages are numbered through."""

        def rename(key: str) -> str:
            key = key.removeprefix("module.module.")
            match = re.match(r"layers\.(\d+)\.(\d+)\.(.+)", key)
            if match is None:
                return key
            # 0 and n + 1 are permutations, 1 to n the blocks, n + 2 the downsampling.
            stage, place, rest = int(match[1]), int(match[2]), match[3]
            blocks = len(self.layers[stage].blocks) if stage < len(self.layers) else place
            rest = rest.replace("se.conv_reduce", "se.fc1").replace("se.conv_expand", "se.fc2")
            part = f"blocks.{place - 1}" if place <= blocks else "downsample"
            return f"layers.{stage}.{part}.{rest}"

        return super().remap_state_dict({rename(k): v for k, v in state_dict.items()})


class EfficientVMambaBackbone(OutNorms, EfficientVMamba):
    """EfficientVMamba as dense systems use it (the authors' ``Backbone_EfficientVSSM``)."""


class EVSSBlock(nn.Module):
    """A scan and a convolution side by side, each weighted by the same channel attention (section
    3.3).

    Args:
        dim: channels of the map [B, H, W, C].
        ssm: keyword arguments of :class:`SS2D`.
        mlp_ratio: width of an MLP afterwards over ``dim``; 0 for none.
        drop_path: stochastic depth.
    """

    def __init__(
        self, dim: int, ssm: dict[str, Any], mlp_ratio: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, force_fp32=True, **ssm)
        self.conv_branch = nn.Sequential(
            depthwise_conv(dim, 3, bias=True),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.se = ChannelAttention(dim)
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        normed = self.norm(x)
        convolved = self.conv_branch(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.se(self.op(normed)) + self.se(convolved))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class ChannelAttention(nn.Module):
    """Squeeze and excitation of a map [B, H, W, C]; what is squeezed is its LayerNorm (BiAttn)."""

    def __init__(self, dim: int, ratio: float = 0.125) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.norm = nn.LayerNorm(dim)
        self.global_reduce = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.channel_select = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        squeezed = self.norm(x).mean((1, 2), keepdim=True)  # [B, 1, 1, C]
        return x * self.channel_select(self.act(self.global_reduce(squeezed))).sigmoid()


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, channel attention, projection of a map [B, H, W, C]."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        mid = 4 * dim
        norm_act = (nn.BatchNorm2d(mid), nn.ReLU(inplace=True))
        self.conv_pw = nn.Sequential(nn.Conv2d(dim, mid, 1, bias=False), *norm_act)
        norm_act = (nn.BatchNorm2d(mid), nn.ReLU(inplace=True))
        self.conv_dw = nn.Sequential(depthwise_conv(mid, 3, bias=False), *norm_act)
        self.se = SqueezeExcite(mid, rd_channels=mid // 8)
        self.conv_pw2 = nn.Sequential(nn.Conv2d(mid, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        y = self.se(self.conv_dw(self.conv_pw(x.permute(0, 3, 1, 2))))
        return x + self.drop_path(self.conv_pw2(y)).permute(0, 2, 3, 1)


# The published variants. Accuracy is top-1 on ImageNet-1k at 224 pixels.


@register_backbone(source="hf://TerryPei/EfficientVMamba-Tiny", parameters=6_493_660, **PLACES)
def efficientvmamba_tiny(**kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T: 6.5 M parameters, 76.5 % top-1."""
    return EfficientVMamba(**{"depths": (2, 2, 4, 2), "dims": 48, **kwargs})


@register_backbone(source="hf://TerryPei/EfficientVMamba-Small", parameters=11_273_688, **PLACES)
def efficientvmamba_small(**kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S (64 channels, as the published weights): 11.3 M, 78.7 % top-1."""
    return EfficientVMamba(**{"depths": (2, 2, 4, 2), "dims": 64, **kwargs})


@register_backbone(source="hf://TerryPei/EfficientVMamba-Base", parameters=33_717_136, **PLACES)
def efficientvmamba_base(**kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B: 33.7 M parameters, 81.8 % top-1."""
    return EfficientVMamba(**{"depths": (2, 2, 9, 2), "dims": 96, **kwargs})
