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

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from zoo.errors import check_choice
from zoo.layers.unet import BilinearUp, TransposedUp, UNet
from zoo.models.registry import register_model


def partition(x: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W, C] -> windows [B * H/height * W/width, height * width, C], row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // height, height, w // width, width, c)
    return x.transpose(2, 3).reshape(-1, height * width, c)


def unpartition(windows: Tensor, height: int, width: int, h: int, w: int) -> Tensor:
    """The inverse of :func:`partition` for a map of H = h, W = w."""
    x = windows.view(-1, h // height, w // width, height, width, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, h, w, windows.shape[-1])


class CrossWindowAttention(nn.Module):
    """Queries of a map attend to the keys of a coarser map within the same window.

    With a window of M x M keys there are ``ratio^2 M^2`` queries, which cover the same area. The
    bias is a learned table over (query row - ratio * key row), the same for columns. Maps that no
    number of windows fits are padded, padded keys masked.

    Args:
        dim: channels; ``dim / num_heads`` per head.
        key_dim: channels of the coarser map.
        num_heads: heads.
        window: M, keys along a side.
        ratio: resolution of the queries over that of the keys.
        shift: move the windows by half their side, cyclically, regions from the far side masked.
        whole: one window over the whole map; the table's last entry serves all greater offsets.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        window: int,
        ratio: int = 1,
        shift: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.ratio = num_heads, window, ratio
        self.shift = window // 2 if shift and not whole else 0
        self.whole = whole
        self.q, self.k, self.v = (
            nn.Linear(dim, dim),
            nn.Linear(key_dim, dim),
            nn.Linear(key_dim, dim),
        )
        self.proj = nn.Linear(dim, dim)
        self.rel_bias = nn.Parameter(torch.zeros(self._offsets**2, num_heads))
        nn.init.trunc_normal_(self.rel_bias, std=0.02)

    @property
    def _offsets(self) -> int:
        return 2 * self.ratio * self.window - self.ratio  # 4M - 2 for ratio 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Queries' map [B, rh, rw, C] and keys' map [B, h, w, key_dim] -> [B, rh, rw, C]."""
        h, w = y.shape[1:3]
        r, m = self.ratio, (h, w) if self.whole else (self.window, self.window)
        rows, columns = -h % m[0], -w % m[1]
        q = pad(self.q(x), (0, 0, 0, r * columns, 0, r * rows))
        k, v = (pad(linear(y), (0, 0, 0, columns, 0, rows)) for linear in (self.k, self.v))
        padded = h + rows, w + columns
        if self.shift:
            q = q.roll((-r * self.shift, -r * self.shift), (1, 2))
            k, v = (t.roll((-self.shift, -self.shift), (1, 2)) for t in (k, v))
        q = self._heads(partition(q, r * m[0], r * m[1]))
        k, v = (self._heads(partition(t, *m)) for t in (k, v))  # [B * windows, heads, M^2, d]
        bias = self._bias(*m)
        if self.shift or rows or columns:
            mask = self._mask(h, w, padded, y.device)  # [windows, 1, r^2 M^2, M^2]
            bias = bias.masked_fill(mask, -torch.inf).repeat(len(y), 1, 1, 1)
        o = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        o = unpartition(
            o.transpose(1, 2).flatten(2), r * m[0], r * m[1], r * padded[0], r * padded[1]
        )
        if self.shift:
            o = o.roll((r * self.shift, r * self.shift), (1, 2))
        return self.proj(o[:, : r * h, : r * w])

    def _heads(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, heads, T, C / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _bias(self, height: int, width: int) -> Tensor:
        """[1, heads, r^2 height width, height width] from the table."""
        last = self.ratio * (self.window - 1)

        def index(side: int) -> Tensor:
            device = self.rel_bias.device
            query = torch.arange(self.ratio * side, device=device)[:, None]
            key = torch.arange(side, device=device)[None]
            return (query - self.ratio * key + last).clamp(0, self._offsets - 1)

        rows, columns = index(height), index(width)
        place = rows[:, None, :, None] * self._offsets + columns[None, :, None, :]
        bias = self.rel_bias[place.reshape(rows.shape[0] * columns.shape[0], height * width)]
        return bias.permute(2, 0, 1)[None]

    def _mask(self, h: int, w: int, padded: tuple[int, int], device: torch.device) -> Tensor:
        """True where a query must not see a key."""
        # a padded query is thrown away, yet without any key its gradient would be NaN
        region = torch.zeros(1, *padded, 1, device=device)
        if self.shift:
            edges = (
                slice(0, -self.window),
                slice(-self.window, -self.shift),
                slice(-self.shift, None),
            )
            for i, a in enumerate(edges):
                for j, b in enumerate(edges):
                    region[:, a, b] = 3 * i + j
        valid = torch.zeros_like(region)
        valid[:, :h, :w] = 1
        if self.shift:
            valid = valid.roll((-self.shift, -self.shift), (1, 2))
        fine = [
            interpolate(t.permute(0, 3, 1, 2), scale_factor=self.ratio).permute(0, 2, 3, 1)
            for t in (region, valid)
        ]
        m = padded if self.whole else (self.window, self.window)
        query_region, query_valid = (
            partition(t, self.ratio * m[0], self.ratio * m[1]) for t in fine
        )
        key_region, key_valid = (partition(t, *m).transpose(1, 2) for t in (region, valid))
        hidden = (query_region != key_region) | (key_valid == 0)
        return (hidden & (query_valid != 0))[:, None]


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


@register_model(parameters=33_858_881)
def wau_unet(**kwargs: Any) -> WAUNet:
    """U-Net with window attention upsampling, 33,858,881 parameters for 1 channel and 9 classes."""
    return WAUNet(**kwargs)
