"""Decoders of segmentation_models_pytorch on any backbone of four or five stages.

``import zoo`` enters this zoo's backbones into timm's registry, where that library finds them; its
other decoders work the same way: ``smp.create_model("linknet", "tu-vmamba_tiny")``.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch
import timm
from torch import nn

from zoo.errors import ZooError
from zoo.models.registry import register_model

#: What the decoders take.
STRIDE = 32


def segmenter(
    arch: str, backbone: str = "vmamba_tiny", num_classes: int = 150, **kwargs: Any
) -> nn.Module:
    """A network from images [B, 3, H, W] to logits [B, num_classes, H, W]; H and W multiples of 32.

    Args:
        arch: the library's name of the decoder.
        backbone: name of a backbone of this zoo or of timm.
        num_classes: classes.
        kwargs: of decoder (``decoder_...``) and backbone.
    """
    if not timm.is_model(backbone):
        raise ZooError(f"there is no backbone '{backbone}', see zoo.list_models() and timm's")
    try:
        model = segmentation_models_pytorch.create_model(
            arch, f"tu-{backbone}", encoder_weights=None, classes=num_classes, **kwargs
        )
    except ValueError as error:  # the message about a flat backbone names no backbone
        raise ZooError(f"{arch} cannot be built on '{backbone}': {error}") from error
    model.stride = STRIDE
    return model


@register_model(parameters=33_610_294)
def smp_unet(**kwargs: Any) -> nn.Module:
    """U-Net's decoder on a backbone, of segmentation_models_pytorch."""
    return segmenter("unet", **kwargs)


@register_model(parameters=31_491_350)
def smp_fpn(**kwargs: Any) -> nn.Module:
    """Feature pyramid network on a backbone, of segmentation_models_pytorch."""
    return segmenter("fpn", **kwargs)


@register_model(parameters=30_149_398)
def smp_segformer(**kwargs: Any) -> nn.Module:
    """SegFormer's MLP decoder on a backbone, of segmentation_models_pytorch."""
    return segmenter("segformer", **kwargs)
