"""ChangeMamba: change detection with spatio-temporal scans (Chen et al., IEEE TGRS 2024, arXiv
2404.03425).

One VMamba backbone looks at the pictures of both dates. A decoder puts their maps side by side in
three ways, so that the four scans of a VSS block run through space and time: MambaBCD tells what
changed, MambaSCD from which land cover to which, MambaBDA which buildings are damaged how badly.

Outputs and gradients of all three agree with the authors' code (ChenHongruixuan/MambaCD, commit
96c3240) on random weights; modules have its names, so its checkpoints load as they are. The
published table counts parameters without those of the scans (x_proj, dt_projs, A_logs, Ds), and its
Tiny is an earlier one: the counts below are those of the code that made the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from zoo.errors import ZooError
from zoo.layers.ss2d import Permute
from zoo.models.registry import register_model
from zoo.models.vision.vmamba import VMambaBackbone

#: Stochastic depth of the decoders' blocks.
DROP_PATH = 0.1


def side_by_channel(pre: Tensor, post: Tensor) -> Tensor:
    """Parallel: [B, C, H, W] twice -> [B, 2C, H, W]."""
    return torch.cat([pre, post], 1)


def side_by_column(pre: Tensor, post: Tensor) -> Tensor:
    """Cross: columns of both dates in turn, [B, C, H, W] twice -> [B, C, H, 2W], even ones
    ``pre``."""
    return torch.stack([pre, post], -1).flatten(-2)


def side_by_map(pre: Tensor, post: Tensor) -> Tensor:
    """Sequential: one map after the other, [B, C, H, W] twice -> [B, C, H, 2W]."""
    return torch.cat([pre, post], -1)


class ChangeMamba(nn.Module):
    """What the three networks share: encoder, sizes, weights.

    Images have any size that the backbone can take; logits have the size of the images.

    Args:
        decoder_width: channels of the decoders, 128 in all published networks.
        backbone: arguments of :class:`zoo.models.vision.vmamba.VMambaBackbone`, whose
            ``num_classes`` has no effect; the decoders' blocks are of the same kind as its own.
            With ``norm_layer`` "bn" the statistics are of both dates together.
    """

    def __init__(self, decoder_width: int = 128, **backbone: Any) -> None:
        super().__init__()
        self.width = decoder_width
        self.encoder = VMambaBackbone(**backbone)

    def encode(self, pre: Tensor, post: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images [B, 3, H, W] of both dates -> maps of strides 4, 8, 16, 32 of each."""
        if pre.shape != post.shape:
            raise ZooError(
                f"images of {list(pre.shape)} before and {list(post.shape)} after, expected two of "
                "one shape"
            )
        maps = [m.chunk(2) for m in self.encoder(torch.cat([pre, post]))]
        return [before for before, _ in maps], [after for _, after in maps]

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The authors decay every parameter."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights to ours: linear layers may stand there as 1x1 convolutions."""
        own = self.state_dict()
        return {
            key: value.flatten(1)
            if value.dim() == 4 and key in own and own[key].dim() == 2
            else value
            for key, value in state_dict.items()
        }


class MambaBCD(ChangeMamba):
    """Binary change: images [B, 3, H, W] before and after -> logits [B, 2, H, W]; 1: changed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decoder = ChangeDecoder(self.encoder, self.width)
        self.main_clf = nn.Conv2d(self.width, 2, 1)

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Change logits."""
        change = self.main_clf(self.decoder(*self.encode(pre, post)))
        return resize(change, pre.shape[-2:])


class MambaSCD(ChangeMamba):
    """Semantic change: images of both dates -> change logits [B, 2, H, W], and land-cover logits of
    each date, [B, output_clf, H, W], whose class 0 ("unchanged") is not trained.

    Args:
        output_cd: outputs of the change decoder.
        output_clf: land-cover classes, and class 0.
        kwargs: see :class:`ChangeMamba`.
    """

    def __init__(self, output_cd: int = 2, output_clf: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decoder_bcd = ChangeDecoder(self.encoder, self.width)
        self.decoder_T1 = SemanticDecoder(self.encoder, self.width)
        self.decoder_T2 = SemanticDecoder(self.encoder, self.width)
        self.main_clf_cd = nn.Conv2d(self.width, output_cd, 1)
        self.aux_clf = nn.Conv2d(self.width, output_clf, 1)

    def forward(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of change, of land cover before, of land cover after."""
        before, after = self.encode(pre, post)
        change = self.main_clf_cd(self.decoder_bcd(before, after))
        cover = self.aux_clf(self.decoder_T1(before)), self.aux_clf(self.decoder_T2(after))
        first, second, third = (resize(x, pre.shape[-2:]) for x in (change, *cover))
        return first, second, third


class MambaBDA(ChangeMamba):
    """Building damage: images before and after -> building logits [B, output_building, H, W], from
    the first alone, and damage logits [B, output_damage, H, W].

    Args:
        output_building: background and building.
        output_damage: background, no, minor, major damage, destroyed.
        kwargs: see :class:`ChangeMamba`.
    """

    def __init__(self, output_building: int = 2, output_damage: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decoder_damage = ChangeDecoder(self.encoder, self.width)
        self.decoder_building = SemanticDecoder(self.encoder, self.width)
        self.main_clf = nn.Conv2d(self.width, output_damage, 1)
        self.aux_clf = nn.Conv2d(self.width, output_building, 1)

    def forward(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of buildings and of damage."""
        before, after = self.encode(pre, post)
        building = self.aux_clf(self.decoder_building(before))
        damage = self.main_clf(self.decoder_damage(before, after))
        return resize(building, pre.shape[-2:]), resize(damage, pre.shape[-2:])


class ChangeDecoder(nn.Module):
    """Spatio-temporal decoder (section III-C): three kinds of scans at each level, fused top-down.

    Args:
        encoder: gives widths of the maps and kind of the blocks.
        width: channels inside.
    """

    def __init__(self, encoder: VMambaBackbone, width: int) -> None:
        super().__init__()
        dims = [info["num_chs"] for info in encoder.feature_info]
        for level in (4, 3, 2, 1):
            dim = dims[level - 1]
            for way, channels in enumerate((2 * dim, dim, dim), start=1):
                block = scan_block(encoder, width, nn.Conv2d(channels, width, 1))
                self.add_module(f"st_block_{level}{way}", block)
        for level in (4, 3, 2, 1):
            self.add_module(f"fuse_layer_{level}", conv_norm_relu(5 * width, width))
        for level in (3, 2, 1):
            self.add_module(f"smooth_layer_{level}", ResBlock(width))

    def forward(self, pre: Sequence[Tensor], post: Sequence[Tensor]) -> Tensor:
        """Four maps of each date -> [B, width, H/4, W/4]."""
        x = self.relate(4, pre[3], post[3])
        for level in (3, 2, 1):
            x = add_resized(x, self.relate(level, pre[level - 1], post[level - 1]))
            x = self.get_submodule(f"smooth_layer_{level}")(x)
        return x

    def relate(self, level: int, pre: Tensor, post: Tensor) -> Tensor:
        """Scan two maps [B, C, h, w] in the three ways and fuse: -> [B, width, h, w]."""
        parallel, cross, sequential = (
            self.get_submodule(f"st_block_{level}{way}")(arrange(pre, post))
            for way, arrange in enumerate((side_by_channel, side_by_column, side_by_map), start=1)
        )
        dates = [cross[..., ::2], cross[..., 1::2], *sequential.chunk(2, -1)]
        return self.get_submodule(f"fuse_layer_{level}")(torch.cat([parallel, *dates], 1))


class SemanticDecoder(nn.Module):
    """Decoder of one date; arguments as of :class:`ChangeDecoder`."""

    def __init__(self, encoder: VMambaBackbone, width: int) -> None:
        super().__init__()
        dims = [info["num_chs"] for info in encoder.feature_info]
        self.st_block_4_semantic = scan_block(encoder, width, nn.Conv2d(dims[3], width, 1))
        for level in (3, 2, 1):
            self.add_module(f"st_block_{level}_semantic", scan_block(encoder, width))
        for level in (3, 2, 1):
            self.add_module(f"trans_layer_{level}", conv_norm_relu(dims[level - 1], width))
        for level in (3, 2, 1, 0):
            self.add_module(f"smooth_layer_{level}_semantic", ResBlock(width))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps -> [B, width, H/4, W/4]."""
        x = self.st_block_4_semantic(features[3])
        for level in (3, 2, 1):
            lateral = self.get_submodule(f"trans_layer_{level}")(features[level - 1])
            x = self.get_submodule(f"smooth_layer_{level}_semantic")(add_resized(x, lateral))
            x = self.get_submodule(f"st_block_{level}_semantic")(x)
        return self.smooth_layer_0_semantic(x)


# Positions in these Sequentials are part of the names in the official weights.
def scan_block(encoder: VMambaBackbone, width: int, *first: nn.Module) -> nn.Sequential:
    """A VSS block like the encoder's on a map [B, width, h, w], perhaps after a convolution."""
    block = encoder.make_block(width, drop_path=DROP_PATH)
    return nn.Sequential(*first, Permute(0, 2, 3, 1), block, Permute(0, 3, 1, 2))


def conv_norm_relu(in_chans: int, out_chans: int) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(in_chans, out_chans, 1), nn.BatchNorm2d(out_chans), nn.ReLU())


class ResBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, around them a skip connection: [B, C, h, w] kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, h, w]."""
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def add_resized(coarse: Tensor, fine: Tensor) -> Tensor:
    """The coarse map at the size of the fine one, added to it."""
    return resize(coarse, fine.shape[-2:]) + fine


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to another height and width."""
    return interpolate(x, size=tuple(size), mode="bilinear")


# The published variants. Scores are of the authors' table: F1 on LEVIR-CD+, SeK on SECOND, overall
# F1 on xBD, in percent.

_RECORD = "https://zenodo.org/records/14037770/files/"
_COMMON = {
    "ssm_d_state": 1,
    "ssm_conv_bias": False,
    "forward_type": "v3noz",
    "downsample_version": "v3",
    "patchembed_version": "v2",
}
_TINY = {**_COMMON, "depths": (2, 2, 4, 2), "dims": 96, "drop_path_rate": 0.2}
_SMALL = {**_COMMON, "depths": (2, 2, 15, 2), "dims": 96, "drop_path_rate": 0.3}
_BASE = {**_COMMON, "depths": (2, 2, 15, 2), "dims": 128, "drop_path_rate": 0.6}


@register_model(source=_RECORD + "MambaBCD_Tiny_LEVIRCD+_F1_0.8803.pth", parameters=32_613_506)
def mambabcd_tiny(**kwargs: Any) -> MambaBCD:
    """MambaBCD-Tiny: 32.6 M parameters, 88.04 % F1; weights of LEVIR-CD+."""
    return MambaBCD(**{**_TINY, **kwargs})


@register_model(parameters=53_999_618)
def mambabcd_small(**kwargs: Any) -> MambaBCD:
    """MambaBCD-Small: 54.0 M parameters, 87.81 % F1."""
    return MambaBCD(**{**_SMALL, **kwargs})


@register_model(parameters=92_399_874)
def mambabcd_base(**kwargs: Any) -> MambaBCD:
    """MambaBCD-Base: 92.4 M parameters, 88.39 % F1."""
    return MambaBCD(**{**_BASE, **kwargs})


@register_model(parameters=37_125_641)
def mambascd_tiny(**kwargs: Any) -> MambaSCD:
    """MambaSCD-Tiny: 37.1 M parameters, 23.34 % SeK."""
    return MambaSCD(**{**_TINY, **kwargs})


@register_model(parameters=58_511_753)
def mambascd_small(**kwargs: Any) -> MambaSCD:
    """MambaSCD-Small: 58.5 M parameters, 24.04 % SeK."""
    return MambaSCD(**{**_SMALL, **kwargs})


@register_model(parameters=97_034_889)
def mambascd_base(**kwargs: Any) -> MambaSCD:
    """MambaSCD-Base: 97.0 M parameters, 24.11 % SeK."""
    return MambaSCD(**{**_BASE, **kwargs})


@register_model(parameters=34_869_767)
def mambabda_tiny(**kwargs: Any) -> MambaBDA:
    """MambaBDA-Tiny: 34.9 M parameters, 81.11 % overall F1."""
    return MambaBDA(**{**_TINY, **kwargs})


@register_model(parameters=56_255_879)
def mambabda_small(**kwargs: Any) -> MambaBDA:
    """MambaBDA-Small: 56.3 M parameters, 81.14 % overall F1."""
    return MambaBDA(**{**_SMALL, **kwargs})


@register_model(parameters=94_717_575)
def mambabda_base(**kwargs: Any) -> MambaBDA:
    """MambaBDA-Base: 94.7 M parameters, 81.41 % overall F1."""
    return MambaBDA(**{**_BASE, **kwargs})
