"""UPerNet: semantic segmentation with a pyramid over any backbone (Xiao et al., ECCV 2018, arXiv
1807.10221), as VMamba and EfficientVMamba are evaluated on ADE20K.

The heads are those of transformers, which compute what MMSegmentation's ``UPerHead`` and
``FCNHead`` do: on random weights the logits of both equal those of mmsegmentation 1.2.2. The
authors' checkpoints, which have its names, load as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from zoo.errors import ZooError
from zoo.models.registry import register_model


class UPerNet(nn.Module):
    """Backbone, pyramid pooling over its coarsest map, and a feature pyramid down to the finest.

    ``forward``: image [B, 3, H, W] -> logits [B, num_classes, H/4, W/4] (the stride of the finest
    map); while training a pair of these and the auxiliary head's, [B, num_classes, H/16, W/16].

    Args:
        backbone: name of a vision backbone, of this zoo or of timm.
        backbone_args: its arguments; ``out_indices`` chooses the maps.
        num_classes: classes.
        channels: of the pyramid.
        pool_scales: sides of the grids that the coarsest map is pooled to; none for a plain
            feature pyramid.
        aux_channels: of the auxiliary head.
        aux_index: the map that it sees.
        dropout: of whole maps before each classifier.
        out_norms: a LayerNorm on each map of the backbone, as the Mamba backbones' authors have it.
        norm_eps: of these.
    """

    def __init__(
        self,
        backbone: str = "vmamba_tiny",
        backbone_args: dict[str, Any] | None = None,
        num_classes: int = 150,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        aux_channels: int = 256,
        aux_index: int = 2,
        dropout: float = 0.1,
        out_norms: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = FeatureMaps(backbone, out_norms, norm_eps, **(backbone_args or {}))
        dims = self.backbone.dims
        if not -len(dims) <= aux_index < len(dims):
            raise ZooError(
                f"aux_index is {aux_index}, but {backbone} gives {len(dims)} maps: choose one of "
                f"{', '.join(map(str, range(len(dims))))}"
            )
        settings = SimpleNamespace(
            pool_scales=tuple(pool_scales),
            hidden_size=channels,
            num_labels=num_classes,
            auxiliary_in_channels=None,
            auxiliary_channels=aux_channels,
            auxiliary_num_convs=1,
            auxiliary_concat_input=False,
        )
        self.decode_head = UperNetHead(settings, dims)
        self.auxiliary_head = UperNetFCNHead(settings, dims, in_index=aux_index)
        for head in (self.decode_head, self.auxiliary_head):
            nn.init.normal_(head.classifier.weight, std=0.01)
            nn.init.zeros_(head.classifier.bias)
            head.classifier = nn.Sequential(nn.Dropout2d(dropout), head.classifier)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Image -> logits."""
        maps = self.backbone(image)
        logits = self.decode_head(maps)
        return (logits, self.auxiliary_head(maps)) if self.training else logits

    @property
    def encoder(self) -> FeatureMaps:
        """The backbone."""
        return self.backbone

    @property
    def head_names(self) -> tuple[str, str]:
        """The classifiers, which a checkpoint may lack for other classes."""
        return "decode_head.classifier.1", "auxiliary_head.classifier.1"

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """MMSegmentation's names to transformers', the backbone's as its authors have them."""
        inner = {
            k.removeprefix("backbone."): v
            for k, v in state_dict.items()
            if k.startswith("backbone.")
        }
        remapped = {f"backbone.{k}": v for k, v in self.backbone.remap_state_dict(inner).items()}
        for key, value in state_dict.items():
            if not key.startswith("backbone."):
                key = re.sub(r"(_head)\.conv_seg\.", r"\1.classifier.1.", key)
                key = re.sub(r"^(\w+_head\..*)\.bn\.", r"\1.batch_norm.", key)
                remapped[key] = value
        return remapped


class FeatureMaps(nn.Module):
    """A backbone's maps, fine to coarse.

    ``forward``: image [B, 3, H, W] -> list of maps [B, dims[i], h, w].

    Args:
        name: of a vision backbone, of this zoo or of timm.
        out_norms: a LayerNorm on each map; they are new, a classifier's checkpoint lacks them.
        norm_eps: of these.
        kwargs: of the backbone.
    """

    def __init__(self, name: str, out_norms: bool, norm_eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ZooError(f"there is no backbone '{name}', see zoo.list_models() and timm's")
        self.net = timm.create_model(name, features_only=True, **kwargs)
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        self.dims: Sequence[int] = self.net.feature_info.channels()
        self.strides: Sequence[int] = self.net.feature_info.reduction()
        for i, dim in enumerate(self.dims if out_norms else ()):
            self.add_module(f"outnorm{i}", LayerNorm2d(dim, eps=norm_eps))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image -> maps."""
        maps = self.net(image)
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        norms = dict(self.named_children())
        return [
            norms[f"outnorm{i}"](x) if f"outnorm{i}" in norms else x for i, x in enumerate(maps)
        ]

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to ours; a classifier gives way to fresh output norms."""
        own = self.state_dict()
        if own.keys() == state_dict.keys():
            return state_dict
        state_dict = _plain_norms(state_dict)
        rest = {k: v for k, v in state_dict.items() if not k.startswith("outnorm")}
        norms = {k: v for k, v in state_dict.items() if k.startswith("outnorm")}
        inner = getattr(self.net, "model", self.net)
        if hasattr(inner, "remap_state_dict"):
            rest = inner.remap_state_dict(rest)
        place = "net.model." if hasattr(self.net, "model") else "net."
        classifier = [k for k in rest if k.startswith(("classifier.", "head."))]
        for key in classifier:
            del rest[key]
        if classifier and not norms:
            norms = {k: v for k, v in own.items() if k.startswith("outnorm")}
        return norms | {place + k: v for k, v in rest.items()}


def _plain_norms(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """PlainMamba's norms of maps, which are numbered by layers, the last being its final one."""
    layers = sorted({int(m[1]) for k in state_dict if (m := re.match(r"norm_layer(\d+)\.", k))})
    places = {f"norm_layer{layer}": i for i, layer in enumerate(layers)}
    if places:
        places["ln1"] = len(layers)
    renamed = {}
    for key, value in state_dict.items():
        name, _, rest = key.partition(".")
        renamed[f"outnorm{places[name]}.{rest}" if name in places else key] = value
    return renamed


# The published variants, on ADE20K's 150 classes; mIoU of one scale at 512 pixels.

_VMAMBA = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/"


def _upernet(kwargs: dict[str, Any], backbone: str, **backbone_args: Any) -> UPerNet:
    args = {**backbone_args, **kwargs.pop("backbone_args", {})}
    return UPerNet(**{"backbone": backbone, "backbone_args": args, **kwargs})


@register_model(
    source=_VMAMBA + "upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth",
    parameters=61_902_572,
)
def upernet_vmamba_tiny(**kwargs: Any) -> UPerNet:
    """UPerNet on VMamba-T [s1l8]: 47.9 % mIoU on ADE20K."""
    return _upernet(kwargs, "vmamba_tiny")


@register_model(
    source=_VMAMBA + "upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000.pth",
    parameters=81_801_260,
)
def upernet_vmamba_small(**kwargs: Any) -> UPerNet:
    """UPerNet on VMamba-S [s2l15]: 50.6 % mIoU on ADE20K."""
    return _upernet(kwargs, "vmamba_small_s2l15")


@register_model(
    source=_VMAMBA + "upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000.pth",
    parameters=122_069_292,
)
def upernet_vmamba_base(**kwargs: Any) -> UPerNet:
    """UPerNet on VMamba-B [s2l15]: 51.0 % mIoU on ADE20K."""
    return _upernet(kwargs, "vmamba_base_s2l15")


@register_model(parameters=35_360_192)
def upernet_efficientvmamba_tiny(**kwargs: Any) -> UPerNet:
    """UPerNet on EfficientVMamba-T."""
    return _upernet(kwargs, "efficientvmamba_tiny")


@register_model(parameters=41_069_212)
def upernet_efficientvmamba_small(**kwargs: Any) -> UPerNet:
    """UPerNet on EfficientVMamba-S."""
    return _upernet(kwargs, "efficientvmamba_small")


@register_model(parameters=65_370_644)
def upernet_efficientvmamba_base(**kwargs: Any) -> UPerNet:
    """UPerNet on EfficientVMamba-B: 46.5 % mIoU on ADE20K."""
    return _upernet(kwargs, "efficientvmamba_base")


_PLAIN = "hf://ChenhongyiYang/PlainMamba/segmentation/"


def _plain(kwargs: dict[str, Any], size: str, layers: int, drop_path: float) -> UPerNet:
    indices = tuple(layers * (i + 1) // 4 - 1 for i in range(4))
    settings = {"aux_index": 3, "norm_eps": 1e-6, **kwargs}
    return _upernet(settings, f"plainmamba_{size}", out_indices=indices, drop_path_rate=drop_path)


@register_model(source=_PLAIN + "l1_upernet.pth", parameters=35_455_596)
def upernet_plainmamba_l1(**kwargs: Any) -> UPerNet:
    """UPerNet on PlainMamba-L1, all maps of stride 16: 44.1 % mIoU on ADE20K."""
    return _plain(kwargs, "l1", 24, drop_path=0.1)


@register_model(source=_PLAIN + "l2_upernet.pth", parameters=55_874_156)
def upernet_plainmamba_l2(**kwargs: Any) -> UPerNet:
    """UPerNet on PlainMamba-L2, all maps of stride 16: 46.8 % mIoU on ADE20K."""
    return _plain(kwargs, "l2", 24, drop_path=0.2)


@register_model(source=_PLAIN + "l3_upernet.pth", parameters=81_292_908)
def upernet_plainmamba_l3(**kwargs: Any) -> UPerNet:
    """UPerNet on PlainMamba-L3, all maps of stride 16: 49.1 % mIoU on ADE20K."""
    return _plain(kwargs, "l3", 36, drop_path=0.3)
