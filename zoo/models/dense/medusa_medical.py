"""MEDUSA: one encoder-decoder body of self-attention for all scales of a medical classifier.

Aboutalebi et al., "MEDUSA: Multi-Scale Encoder-Decoder Self-Attention Deep Neural Network
Architecture for Medical Image Analysis", Frontiers in Medicine 2022 (arXiv 2110.06063). A single
body of high capacity looks at the whole image; light heads adapt what it says to each stage of a
classifier and weigh the stage's features. "Self-attention" is a learned spatial map here.

No definition of the network is published, only a frozen TensorFlow graph. The sizes here are ours,
chosen so that ResNet-50 with the body comes near the published 29.2 million parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import timm
import torch
from timm.layers import create_attn
from torch import Tensor, nn
from torch.nn.functional import interpolate

from zoo.errors import ZooError, check_choice
from zoo.layers.precision import at_least_fp32
from zoo.layers.unet import TransposedUp, UNet
from zoo.models.registry import register_model

ATTENTIONS = ("medusa", "none", "se", "cbam")
Mode = Literal["residual", "gate"]


class Medusa(nn.Module):
    """A ResNet whose stages are weighed by one body's attention.

    ``forward``: image [B, 3, S, S] -> logits [B, num_classes].

    Args:
        num_classes: classes.
        backbone: a ResNet of timm; ``backbone_args``: its arguments.
        attention: ``medusa``; or the paper's contrast, light modules on each stage alone: ``se``,
            ``cbam``; or ``none``.
        body_widths: channels of the body's levels, fine to coarse.
        global_chans: channels of the body's output.
        body_size: side of the grey picture that the body sees, in pixels.
        mode: features times 1 + attention, or times attention (``gate``).
    """

    head_names = ("classifier",)

    def __init__(
        self,
        num_classes: int = 2,
        backbone: str = "resnet50",
        backbone_args: dict[str, Any] | None = None,
        attention: Literal["medusa", "none", "se", "cbam"] = "medusa",
        body_widths: Sequence[int] = (24, 48, 96, 192, 384),
        global_chans: int = 16,
        body_size: int = 256,
        mode: Mode = "residual",
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTIONS)
        check_choice("mode", mode, get_args(Mode))
        self.attention, self.body_size, self.mode = attention, body_size, mode
        self.backbone = timm.create_model(backbone, num_classes=0, **(backbone_args or {}))
        if not hasattr(self.backbone, "layer4"):
            raise ZooError(
                f"backbone '{backbone}' has no four stages, expected one of timm's ResNets"
            )
        chans = [info["num_chs"] for info in self.backbone.feature_info[1:]]
        if attention == "medusa":
            self.body = UNet(1, global_chans, body_widths, TransposedUp)
            self.heads = nn.ModuleList(AttentionHead(global_chans, c) for c in chans)
        elif attention != "none":
            self.isolated = nn.ModuleList(create_attn(attention, c) for c in chans)
        self.classifier = nn.Linear(chans[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> logits."""
        return self.attend(image)[0]

    def attend(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and each head's attention [B, C, H, W] in 0..1 (none without the body)."""
        net = self.backbone
        x = net.maxpool(net.act1(net.bn1(net.conv1(image))))
        everywhere = self.look(image) if self.attention == "medusa" else None
        maps = []
        for i, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            x = stage(x)
            if everywhere is not None:
                maps.append(self.heads[i](everywhere, x.shape[-2:]))
                x = x * (maps[-1] if self.mode == "gate" else 1 + maps[-1])
            elif self.attention != "none":
                x = self.isolated[i](x)
        return self.classifier(x.mean((2, 3))), maps

    def look(self, image: Tensor) -> Tensor:
        """Image [B, 3, S, S] -> the body's answer [B, global_chans, body_size, body_size].

        The body sees the grey picture at its own size, each with mean 0 and deviation 1.
        """
        size = (self.body_size, self.body_size)
        # PyTorch antialiases no half precision
        grey = at_least_fp32(image.mean(1, keepdim=True))
        grey = interpolate(grey, size, mode="bilinear", antialias=True)
        deviation, mean = torch.std_mean(grey, (1, 2, 3), keepdim=True)
        return self.body(((grey - mean) / (deviation + 1e-6)).to(image.dtype))


class AttentionHead(nn.Module):
    """Adapts the body's answer to the size and channels of one stage."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, out_chans, 1),
            nn.Sigmoid(),
        )

    def forward(self, everywhere: Tensor, size: Sequence[int]) -> Tensor:
        """[B, C, S, S] -> attention [B, out_chans, *size] in 0..1."""
        return self.layers(interpolate(everywhere, size=tuple(size), mode="bilinear"))


@register_model(parameters=28_167_122)
def medusa_medical_resnet50(**kwargs: Any) -> Medusa:
    """MEDUSA on ResNet-50: 28,167,122 parameters."""
    return Medusa(**kwargs)
