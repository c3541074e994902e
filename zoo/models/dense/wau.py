"""WAU: a Transformer decoder that upsamples, in windows, inside a U-Net.

Li et al., "More than Encoder: Introducing Transformer Decoder to Upsample", BIBM 2022 (arXiv
2106.10637). At each decoder level the high-resolution lateral map asks (queries), the coarse map
answers (keys and values), and the bilinearly upsampled coarse map is added.

Only the idea and the results are in the abstracts that could be read, and no code is published: all
sizes here are ours, chosen after the usual U-Net and Swin. Queries and keys of a window cover the
same area, so a window of 7x7 keys has 14x14 queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import interpolate

from zoo.errors import check_choice
from zoo.layers.unet import BilinearUp, TransposedUp, UNet
from zoo.layers.window_attention import CrossWindowAttention
from zoo.models.registry import register_model


class WindowAttentionUpsample(CrossWindowAttention):
    """Attention decoder plus bilinear residual, then an MLP.

    Attention and MLP end in zero weights, so training starts from the bilinear upsampler.

    Args:
        low, high: channels of the coarse and of the lateral map.
        window: keys along a window's side.
        head_dim: channels of a head; a lateral map with fewer has one head.
        shift: move the windows by half their side.
        whole: attention over the whole map (the paper's AU instead of WAU).
    """

    def __init__(
        self,
        low: int,
        high: int,
        window: int = 7,
        head_dim: int = 32,
        shift: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__(high, low, max(1, high // head_dim), window, 2, shift, whole)
        self.norm_x, self.norm_y = nn.LayerNorm(high), nn.LayerNorm(low)
        self.skip = nn.Conv2d(low, high, 1)
        self.norm2 = nn.LayerNorm(high)
        self.mlp = nn.Sequential(nn.Linear(high, 4 * high), nn.GELU(), nn.Linear(4 * high, high))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for last in (self.proj, self.mlp[2]):
            nn.init.zeros_(last.weight)

    def forward(self, coarse: Tensor, lateral: Tensor) -> Tensor:
        """[B, low, h, w] and [B, high, 2h, 2w] -> [B, high, 2h, 2w]."""
        x, y = lateral.permute(0, 2, 3, 1), coarse.permute(0, 2, 3, 1)
        o = super().forward(self.norm_x(x), self.norm_y(y)).permute(0, 3, 1, 2)
        u = o + self.skip(interpolate(coarse, scale_factor=2, mode="bilinear"))
        return u + self.mlp(self.norm2(u.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class WAUNet(UNet):
    """U-Net that upsamples with one of four methods.

    ``forward``: [B, in_chans, H, W] -> logits [B, num_classes, H, W]; H and W multiples of 16 for
    five levels.

    Args:
        in_chans: 1 for CT, 4 for the MSD brain tumours' modalities.
        num_classes: with background: 9 for Synapse, 4 for ACDC and MSD Brain.
        widths: channels of the levels, fine to coarse.
        upsampler: ``wau`` in windows, ``au`` over the whole map, ``bilinear`` or ``transposed``.
        window, head_dim: of the attention.
        shift: shifted windows at every second level.
        concat: concatenate the lateral map in the decoder, as a U-Net does.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 9,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        upsampler: Literal["wau", "au", "bilinear", "transposed"] = "wau",
        window: int = 7,
        head_dim: int = 32,
        shift: bool = False,
        concat: bool = True,
    ) -> None:
        levels = iter(range(len(widths)))

        def attention(low: int, high: int) -> nn.Module:
            shifted = shift and next(levels) % 2 == 1
            return WindowAttentionUpsample(
                low, high, window, head_dim, shifted, whole=upsampler == "au"
            )

        kinds = {
            "wau": attention,
            "au": attention,
            "bilinear": BilinearUp,
            "transposed": TransposedUp,
        }
        check_choice("upsampler", upsampler, kinds)
        super().__init__(in_chans, num_classes, widths, kinds[upsampler], concat)


@register_model()
def wau_unet(**kwargs: Any) -> WAUNet:
    """U-Net with window attention upsampling, 33,858,881 parameters for 1 channel and 9 classes."""
    return WAUNet(**kwargs)
