"""VMamba: Visual State Space Model (Liu et al., NeurIPS 2024, arXiv 2401.10166).

A four-stage backbone whose token mixer is :class:`zoo.layers.ss2d.SS2D`. Outputs and gradients
agree with the authors' code (MzeroMiko/VMamba, commit 2ed52ea) on random weights for every
``forward_type`` below; its channel-first ("ln2d") and channel-last ("ln") forms are the same
function, computed channel-last here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import PatchMerging
from torch import nn

from zoo.errors import ZooError
from zoo.layers.ss2d import OUT_NORMS, SS2D, SSD2D, Permute
from zoo.layers.vss import BatchNorm, VSSBlock, conv_downsample, stem_v1
from zoo.models.vision._backbone import drop_path_rates, register_backbone
from zoo.models.vision._staged import PLACES, OutNorms, Stage, StagedBackbone

_ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
#: First part of ``forward_type`` -> way of scanning; all that share one compute the same function.
_FORWARD_TYPES = {
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05"), "cross2d"),
    **dict.fromkeys(("v1", "v2", "v3", "v4"), "cross2d"),
    **{"v051d": "unidi", "v052d": "bidi", "v052dc": "cascade2d", "m0": "cross2d"},
    **{"v31d": "unidi", "v32d": "bidi"},  # the names of early 2024
}
_FORCE_FP32 = ("v0", "v0seq", "v01", "v02", "v03", "v1", "v2")
#: As forward types were written in early 2024, without underscores.
_EARLY_FORWARD_TYPE = re.compile(r"(v\d+d?)(none|softmax|sigmoid)?(nozact|noz)?(no32)?")


class VMamba(StagedBackbone):
    """VMamba classifier and feature extractor.

    Takes images of any size from ``patch_size`` on; odd sizes are padded as the convolutions do.
    The arguments have the names of the authors' ``VSSM``.

    Args:
        patch_size: side of a patch, stride of the stem.
        in_chans: input channels.
        num_classes: outputs; 0 for features only.
        depths: blocks of each stage.
        dims: channels of each stage, or of the first, each next having twice as many.
        ssm_d_state, ssm_ratio, ssm_dt_rank, ssm_conv, ssm_conv_bias, ssm_drop_rate, ssm_init:
            see :class:`zoo.layers.ss2d.SS2D`.
        ssm_act_layer: activation in SS2D: silu, gelu, relu or sigmoid.
        forward_type: how SS2D works. First a base: v0, v01 ... v05, v2, v3 (four directions; v0,
            the first published form, always has the gate and a convolution bias), v051d (one),
            v052d (two), v052dc (rows, then columns), m0 (Mamba-2's scan). Then, in this order, any
            of _onnone, _onsoftmax, _onsigmoid, _ondwconv3 or _oncnorm (another output norm),
            _nozact (gate without activation) or _noz (no gate), _oact (GELU after the norm), and
            _no32 (v01 to v03 and v2 then scan half-precision inputs under autocast). The spelling
            of early 2024, such as v3noz, is understood too.
        mlp_ratio: width of the MLP over the width of the block; 0 for none.
        mlp_act_layer, mlp_drop_rate: its activation and dropout.
        gmlp: gated MLP.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        patch_norm: norm in the stem.
        norm_layer: "ln" or "ln2d" (the same), or "bn".
        downsample_version: "v1" patch merging, "v2" 2x2 convolution, "v3" 3x3 convolution.
        patchembed_version: "v1" one convolution, "v2" two overlapping ones.
        posembed: add a learned position embedding, made for ``img_size`` and resized for others.
        img_size: side of the training images.
        global_pool: pooling before the classifier: avg, max, avgmax, or "" for none.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = 96,
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str = "v05",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_layer: str = "ln",
        downsample_version: str = "v2",
        patchembed_version: str = "v1",
        posembed: bool = False,
        img_size: int = 224,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        norm = _pick("norm_layer", norm_layer.lower(), _NORMS)
        op, ssm = parse_forward_type(forward_type)
        ssm = {
            "d_state": ssm_d_state,
            "ssm_ratio": ssm_ratio,
            "dt_rank": ssm_dt_rank,
            "act_layer": _pick("ssm_act_layer", ssm_act_layer.lower(), _ACTIVATIONS),
            "d_conv": ssm_conv,
            "conv_bias": ssm_conv_bias,
            "dropout": ssm_drop_rate,
            "init": ssm_init,
            **ssm,
        }
        mlp = {
            "mlp_ratio": mlp_ratio,
            "act_layer": _pick("mlp_act_layer", mlp_act_layer.lower(), _ACTIVATIONS),
            "drop": mlp_drop_rate,
            "gated": gmlp,
        }
        stem = _pick("patchembed_version", patchembed_version, {"v1": stem_v1, "v2": stem_v2})
        self.patch_embed = stem(in_chans, dims[0], patch_size, norm if patch_norm else nn.Identity)
        self.min_size = patch_size * (2 ** (len(dims) - 1) if downsample_version == "v2" else 1)
        if posembed:
            side = img_size // patch_size
            self.pos_embed = nn.Parameter(torch.empty(1, dims[0], side, side))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

        # Decoders on this backbone take their blocks from here too.
        self.make_block = partial(VSSBlock, op=op, ssm=ssm, mlp=mlp, norm=norm)
        downsample = _pick("downsample_version", downsample_version, _DOWNSAMPLES)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = [self.make_block(dim, drop_path=next(rates)) for _ in range(depth)]
            down = downsample(dim, dims[i + 1], norm) if i + 1 < len(dims) else nn.Identity()
            stages.append(Stage(blocks, down))
        self.finish(stages, dims, patch_size, norm(dims[-1]), num_classes, drop_rate, global_pool)


class VMambaBackbone(OutNorms, VMamba):
    """VMamba as dense systems use it (the authors' ``Backbone_VSSM``)."""


_NORMS: dict[str, type[nn.Module]] = {"ln": nn.LayerNorm, "ln2d": nn.LayerNorm, "bn": BatchNorm}


def parse_forward_type(forward_type: str) -> tuple[type[SS2D], dict[str, Any]]:
    """The authors' ``forward_type`` to our operator and its keyword arguments."""
    rest = forward_type
    if early := _EARLY_FORWARD_TYPE.fullmatch(forward_type):
        base, norm, *suffixes = early.groups()
        rest = "_".join(filter(None, [base, norm and f"on{norm}", *suffixes]))
    found = {}
    for suffix in ("no32", "oact", "noz", "nozact", *(f"on{kind}" for kind in OUT_NORMS[1:])):
        found[suffix] = rest.endswith("_" + suffix)
        rest = rest.removesuffix("_" + suffix)
    if rest not in _FORWARD_TYPES:
        raise ZooError(
            f"forward_type '{forward_type}' is none of VMamba's: it is one of "
            f"{', '.join(_FORWARD_TYPES)} and suffixes in the order of VMamba's docstring"
        )
    norms = [kind for kind in OUT_NORMS[1:] if found[f"on{kind}"]]
    ssm: dict[str, Any] = {
        "scan": _FORWARD_TYPES[rest],
        "gate": None if found["noz"] else "linear" if found["nozact"] else "act",
        "out_norm": norms[0] if norms else "ln",
        "out_act": found["oact"],
        "force_fp32": rest in _FORCE_FP32 and not found["no32"],
    }
    if rest in ("v0", "v0seq"):  # the first form has no choice in these
        ssm |= {"d_conv": 3, "conv_bias": True, "act_layer": nn.SiLU, "init": "v0"}
    return (SSD2D if rest == "m0" else SS2D), ssm


# Positions in this Sequential are part of the names in the official weights.
def stem_v2(in_chans: int, dim: int, patch_size: int, norm: type[nn.Module]) -> nn.Sequential:
    """Two overlapping convolutions: [B, in_chans, H, W] to [B, H / p, W / p, dim]."""
    stride = patch_size // 2
    window: dict[str, Any] = {"kernel_size": stride + 1, "stride": stride, "padding": 1}
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, **window),
        Permute(0, 2, 3, 1),
        norm(dim // 2),
        Permute(0, 3, 1, 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, **window),
        Permute(0, 2, 3, 1),
        norm(dim),
    )


_DOWNSAMPLES = {"v1": PatchMerging, "v2": conv_downsample(2, 0), "v3": conv_downsample(3, 1)}


def _pick(name: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ZooError(f"{name} is one of {', '.join(choices)}, not {value}")
    return choices[value]


# The published variants. Parameters and top-1 accuracy are those of ImageNet-1k at 224 pixels.

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


def _vmamba(kwargs: dict[str, Any], **variant: Any) -> VMamba:
    common = {
        "ssm_d_state": 1,
        "ssm_conv_bias": False,
        "forward_type": "v05_noz",
        "downsample_version": "v3",
        "patchembed_version": "v2",
    }
    return VMamba(**{**common, **variant, **kwargs})


def _vmamba_v0(kwargs: dict[str, Any], **variant: Any) -> VMamba:
    common = {"forward_type": "v0", "mlp_ratio": 0.0, "downsample_version": "v1"}
    return VMamba(**{**common, **variant, **kwargs})


def _vmamba_m2(kwargs: dict[str, Any], **variant: Any) -> VMamba:
    mamba2 = {
        "ssm_d_state": 64,
        "ssm_ratio": 1.0,
        "ssm_act_layer": "gelu",
        "ssm_init": "v2",
        "forward_type": "m0_noz",
    }
    return _vmamba(kwargs, **mamba2, **variant)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth",
    parameters=30_249_064,
    **PLACES,
)
def vmamba_tiny(**kwargs: Any) -> VMamba:
    """VMamba-T [s1l8]: 30.2 M parameters, 82.6 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 8, 2), dims=96, ssm_ratio=1.0, drop_path_rate=0.2)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth",
    parameters=49_012_840,
    **PLACES,
)
def vmamba_small(**kwargs: Any) -> VMamba:
    """VMamba-S [s1l20]: 49.0 M parameters, 83.3 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 20, 2), dims=96, ssm_ratio=1.0, drop_path_rate=0.3)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth",
    parameters=86_614_504,
    **PLACES,
)
def vmamba_base(**kwargs: Any) -> VMamba:
    """VMamba-B [s1l20]: 86.6 M parameters, 83.8 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 20, 2), dims=128, ssm_ratio=1.0, drop_path_rate=0.5)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth", parameters=30_705_832, **PLACES
)
def vmamba_tiny_s2l5(**kwargs: Any) -> VMamba:
    """VMamba-T [s2l5]: 30.7 M parameters, 82.5 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 5, 2), dims=96, drop_path_rate=0.2)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth",
    parameters=50_147_752,
    **PLACES,
)
def vmamba_small_s2l15(**kwargs: Any) -> VMamba:
    """VMamba-S [s2l15]: 50.1 M parameters, 83.6 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 15, 2), dims=96, drop_path_rate=0.3)


@register_backbone(
    source=_RELEASES + "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth", parameters=88_557_800, **PLACES
)
def vmamba_base_s2l15(**kwargs: Any) -> VMamba:
    """VMamba-B [s2l15]: 88.6 M parameters, 83.9 % top-1."""
    return _vmamba(kwargs, depths=(2, 2, 15, 2), dims=128, drop_path_rate=0.6)


@register_backbone(
    source=_RELEASES + "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", parameters=22_893_448, **PLACES
)
def vmamba_tiny_v0(**kwargs: Any) -> VMamba:
    """VMamba-T, first form (gated, 16 states, no MLP): 22.9 M parameters, 82.2 % top-1."""
    return _vmamba_v0(kwargs, depths=(2, 2, 9, 2), dims=96, drop_path_rate=0.2)


@register_backbone(
    source=_RELEASES + "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", parameters=44_417_416, **PLACES
)
def vmamba_small_v0(**kwargs: Any) -> VMamba:
    """VMamba-S, first form: 44.4 M parameters, 83.5 % top-1."""
    return _vmamba_v0(kwargs, depths=(2, 2, 27, 2), dims=96, drop_path_rate=0.3)


@register_backbone(
    source=_RELEASES + "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", parameters=76_254_056, **PLACES
)
def vmamba_base_v0(**kwargs: Any) -> VMamba:
    """VMamba-B, first form: 76.3 M parameters, 83.7 % top-1."""
    return _vmamba_v0(kwargs, depths=(2, 2, 27, 2), dims=128, drop_path_rate=0.6)


@register_backbone(parameters=25_340_296, **PLACES)
def vmamba_tiny_m2(**kwargs: Any) -> VMamba:
    """VMamba-T with Mamba-2's scan: 25.3 M parameters."""
    return _vmamba_m2(kwargs, depths=(2, 2, 4, 2), dims=96, drop_path_rate=0.2)


@register_backbone(parameters=39_079_816, **PLACES)
def vmamba_small_m2(**kwargs: Any) -> VMamba:
    """VMamba-S with Mamba-2's scan: 39.1 M parameters."""
    return _vmamba_m2(kwargs, depths=(2, 2, 12, 2), dims=96, drop_path_rate=0.3)


@register_backbone(parameters=67_527_528, **PLACES)
def vmamba_base_m2(**kwargs: Any) -> VMamba:
    """VMamba-B with Mamba-2's scan: 67.5 M parameters."""
    return _vmamba_m2(kwargs, depths=(2, 2, 12, 2), dims=128, drop_path_rate=0.3)
