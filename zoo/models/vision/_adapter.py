"""ViT-Adapter (Chen et al., ICLR 2023, arXiv 2205.08534) around PlainMamba, as its authors detect
objects with it: a flat network of one stride gives maps of four.

A convolutional pyramid runs beside the network. Before each quarter of the layers the tokens take
from it, and after it the pyramid takes from the tokens, both by deformable attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.scan_orders import snake
from zoo.layers.ss2d import depthwise_conv
from zoo.models.registry import create_model
from zoo.models.vision.plainmamba import PlainMamba

#: Rows and columns of maps, fine to coarse, whose cells stand one after the other.
Shapes = Sequence[tuple[int, int]]


class AdaptedMaps(nn.Module):
    """Maps of strides 4, 8, 16 and 32.

    ``forward``: image [B, 3, H, W], sides multiples of 32 -> list of maps [B, dims[i], h, w].

    Args:
        name: of a PlainMamba with patches of 16 pixels, whose layers four divides.
        heads: of the deformable attention.
        points: that each head looks at in each map.
        hidden_ratio: width of the convolutional MLPs over that of the tokens.
        value_ratio: width of the attention's values over that of the tokens.
        stem_channels: of the pyramid's finest map.
        drop_path: stochastic depth of the convolutional MLPs.
        kwargs: of the network.
    """

    strides: Sequence[int] = (4, 8, 16, 32)

    def __init__(
        self,
        name: str,
        heads: int = 6,
        points: int = 4,
        hidden_ratio: float = 0.25,
        value_ratio: float = 1.0,
        stem_channels: int = 64,
        drop_path: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        net = create_model(name, **{"num_classes": 0, "final_norm": False, **kwargs})
        if not isinstance(net, PlainMamba) or len(net.layers) % 4:
            raise ZooError(f"an adapter goes around a PlainMamba of 4, 8, ... layers, not {name}")
        self.net = net
        dim = net.num_features
        if dim % heads or int(dim * value_ratio) % heads:
            raise ZooError(f"adapter heads are {heads}, expected a divisor of the width {dim}")
        self.dims: Sequence[int] = (dim,) * 4
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.spm = SpatialPrior(stem_channels, dim)
        attention = {"heads": heads, "points": points, "ratio": value_ratio}
        extract = {**attention, "hidden": int(dim * hidden_ratio), "drop_path": drop_path}
        self.interactions = nn.Sequential(
            *(Interaction(dim, attention, extract, extractors=3 if i == 3 else 1) for i in range(4))
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        for i in range(1, 5):
            self.add_module(f"ad_norm{i}", nn.BatchNorm2d(dim))
        for part in (self.spm, self.up):
            part.apply(_init_conv)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image -> maps."""
        if image.shape[2] % 32 or image.shape[3] % 32:
            raise ZooError(
                f"sides are multiples of 32 with an adapter, not {list(image.shape[2:])}: pad them"
            )
        finest, *levels = self.spm(image)  # [B, C, H/4, W/4], ..., [B, C, H/32, W/32]
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        places = zip(levels, self.level_embed, strict=True)
        c = torch.cat([x.flatten(2).transpose(1, 2) + e for x, e in places], dim=1)
        x, grid = self.net.tokens(image)  # [B, L, C]
        order = snake(grid[0], grid[1], x.device)
        quarter = len(self.net.layers) // 4
        for i, interaction in enumerate(self.interactions):
            x = interaction.injector(x, c, [grid], shapes)
            for layer in self.net.layers[i * quarter : (i + 1) * quarter]:
                x = self.net.run(layer, x, grid, order)
            for extractor in (interaction.extractor, *(interaction.extra_extractors or ())):
                c = extractor(c, x, shapes, [grid])
        maps = _maps(c, shapes)
        maps = [finest + self.up(maps[0]), *maps]
        flat = x.transpose(1, 2).unflatten(2, grid)
        norms = dict(self.named_children())
        return [norms[f"ad_norm{i + 1}"](y + _resized(flat, y)) for i, y in enumerate(maps)]

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names to ours; a classifier gives way to a fresh adapter."""
        own = self.state_dict()
        if own.keys() == state_dict.keys():
            return state_dict
        state_dict = {k.removeprefix("backbone."): v for k, v in state_dict.items()}
        parts = ("level_embed", "spm.", "interactions.", "up.", "ad_norm")
        rest = {k: v for k, v in state_dict.items() if not k.startswith(parts)}
        adapter = {
            k.replace(".dwconv.dwconv.", ".dwconv."): v
            for k, v in state_dict.items()
            if k.startswith(parts)
        }
        rest = self.net.remap_state_dict(rest)
        if not adapter:
            adapter = {k: v for k, v in own.items() if k.startswith(parts)}
            rest = {k: v for k, v in rest.items() if not k.startswith(("head.", "ln1."))}
        return adapter | {f"net.{k}": v for k, v in rest.items()}


class SpatialPrior(nn.Module):
    """The pyramid's first maps: [B, 3, H, W] -> four of [B, dim, h, w], strides 4 to 32."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(3, channels, 2), *_conv(channels, channels, 1), *_conv(channels, channels, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        self.conv2 = nn.Sequential(*_conv(channels, 2 * channels, 2))
        self.conv3 = nn.Sequential(*_conv(2 * channels, 4 * channels, 2))
        self.conv4 = nn.Sequential(*_conv(4 * channels, 4 * channels, 2))
        self.fc1 = nn.Conv2d(channels, dim, 1)
        self.fc2 = nn.Conv2d(2 * channels, dim, 1)
        self.fc3 = nn.Conv2d(4 * channels, dim, 1)
        self.fc4 = nn.Conv2d(4 * channels, dim, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image -> maps."""
        c1 = self.stem(image)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return [self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)]


class Interaction(nn.Module):
    """What passes between tokens and pyramid around a quarter of the layers."""

    def __init__(
        self, dim: int, attention: dict[str, Any], extract: dict[str, Any], extractors: int
    ) -> None:
        super().__init__()
        self.injector = Injector(dim, **attention)
        self.extractor = Extractor(dim, **extract)
        self.extra_extractors = None
        if extractors > 1:
            self.extra_extractors = nn.ModuleList(
                Extractor(dim, **extract) for _ in range(extractors - 1)
            )


class Injector(nn.Module):
    """Tokens take from the pyramid; at the start they take nothing."""

    def __init__(self, dim: int, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, levels=3, **attention)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, c: Tensor, grid: Shapes, shapes: Shapes) -> Tensor:
        """Tokens [B, L, C] of a grid and the pyramid [B, M, C] -> tokens."""
        taken = self.attn(self.query_norm(x), self.feat_norm(c), grid, shapes)
        return x + self.gamma * taken


class Extractor(nn.Module):
    """The pyramid takes from the tokens, then a convolutional MLP."""

    def __init__(self, dim: int, hidden: int, drop_path: float, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, levels=1, **attention)
        self.ffn = ConvMlp(dim, hidden)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, x: Tensor, shapes: Shapes, grid: Shapes) -> Tensor:
        """The pyramid [B, M, C] and tokens [B, L, C] of a grid -> the pyramid."""
        c = c + self.attn(self.query_norm(c), self.feat_norm(x), shapes, grid)
        return c + self.drop_path(self.ffn(self.ffn_norm(c), shapes))


class ConvMlp(nn.Module):
    """An MLP with a depthwise convolution of each of the pyramid's maps in it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = depthwise_conv(hidden, 3, bias=True)
        self.fc2 = nn.Linear(hidden, dim)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        _init_conv(self.dwconv)

    def forward(self, c: Tensor, shapes: Shapes) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        maps = [self.dwconv(x) for x in _maps(self.fc1(c), shapes)]
        return self.fc2(F.gelu(torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)))


class DeformableAttention(nn.Module):
    """Each query looks at a few learned places around its own in every map (Zhu et al., ICLR 2021,
    arXiv 2010.04159, eq. 3).

    Args:
        dim: width of queries and values.
        levels: maps of values.
        heads, points: how many places, in each map.
        ratio: width inside over ``dim``.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, int(dim * ratio))
        self.output_proj = nn.Linear(int(dim * ratio), dim)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        # The heads look in all directions, their points at growing distances.
        angles = torch.arange(heads) * (2 * math.pi / heads)
        ways = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        steps = ways[:, None, None] * torch.arange(1, points + 1)[:, None]  # [heads, 1, points, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, levels, -1, -1).flatten())

    def forward(self, query: Tensor, values: Tensor, at: Shapes, shapes: Shapes) -> Tensor:
        """Queries [B, Q, C] of cells of maps ``at``, values [B, M, C] of maps -> [B, Q, C]."""
        kinds = (self.heads, self.levels, self.points)
        own = torch.cat([_centers(rows, columns, query.device) for rows, columns in at])
        offsets = self.sampling_offsets(query).unflatten(2, (*kinds, 2))
        weights = self.attention_weights(query).unflatten(2, (self.heads, -1))
        weights = weights.softmax(-1).unflatten(3, kinds[1:])  # [B, Q, heads, levels, points]
        values = self.value_proj(values).unflatten(2, (self.heads, -1)).transpose(1, 2)
        seen = []
        start = 0
        for i, (rows, columns) in enumerate(shapes):
            level = values[:, :, start : start + rows * columns].transpose(2, 3)
            start += rows * columns
            cells = level.flatten(0, 1).unflatten(2, (rows, columns))  # [B heads, d, rows, columns]
            size = torch.tensor([columns, rows], device=query.device)
            places = own[:, None, None] + offsets[:, :, :, i] / size  # [B, Q, heads, points, 2]
            places = (2 * places - 1).transpose(1, 2).flatten(0, 1).to(cells.dtype)
            sampled = F.grid_sample(cells, places, align_corners=False)  # [B heads, d, Q, points]
            weight = weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]
            seen.append((sampled * weight).sum(-1))
        out = torch.stack(seen).sum(0).unflatten(0, (-1, self.heads))  # [B, heads, d, Q]
        return self.output_proj(out.permute(0, 3, 1, 2).flatten(2))


def _centers(rows: int, columns: int, device: torch.device) -> Tensor:
    """Centres (x, y) [rows columns, 2] of the cells of a map, in 0..1."""
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)


def _maps(c: Tensor, shapes: Shapes) -> list[Tensor]:
    """Cells [B, M, C] as maps [B, C, h, w]."""
    parts = c.transpose(1, 2).split([rows * columns for rows, columns in shapes], dim=2)
    return [x.unflatten(2, shape) for x, shape in zip(parts, shapes, strict=True)]


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _conv(channels: int, out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _init_conv(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        side = module.kernel_size[0]
        fan_out = side * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
