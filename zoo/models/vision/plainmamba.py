"""PlainMamba (Yang et al., BMVC 2024, arXiv 2403.17695).

A flat stack of 2-D Mamba layers without a class token. Outputs and gradients agree with the
authors' code (ChenhongyiYang/PlainMamba, commit 0975a1d) on random weights, two slips of it
included: see ``strict_official``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.kept_tokens import gap_scan, step_sizes
from zoo.layers.plain import at_zero, split_bias
from zoo.layers.precision import at_least_fp32
from zoo.layers.scan_orders import ScanOrder, permute, snake
from zoo.layers.ss2d import depthwise_conv
from zoo.layers.ssm_init import dt_bias, dt_weight, s4d_real_log
from zoo.models.vision._backbone import Backbone, drop_path_rates, make_head, register_backbone
from zoo.ops import selective_scan


class PlainMamba(Backbone):
    """PlainMamba classifier and feature extractor.

    Images of any size: they are padded at the right and bottom to whole patches, and the position
    embedding is resized. Arguments have the names of the authors' code.

    Args:
        img_size: height and width of the training images.
        in_chans: input channels.
        num_classes: outputs; 0 for features only.
        patch_size: side of a patch, even.
        embed_dims: width of the tokens.
        num_layers: layers.
        num_convs_patch_embed: 3x3 convolutions in the stem.
        layers_with_dwconv: numbers of layers that end in a depthwise convolution.
        with_pos_embed: learned position embedding.
        drop_rate: dropout after the position embedding.
        drop_path_rate: stochastic depth of the last layer, rising linearly from 0.
        final_norm: LayerNorm at the end.
        use_rms_norm: RMSNorm instead of LayerNorm in the layers.
        mamba_cfg: further arguments of :class:`PlainMamba2D`.
        strict_official: compute what the published weights were trained with. In all four orders
            only x follows the scan while the step sizes, B and C stay in raster order; the bias of
            the step sizes is added twice; and they start like any linear layer. False: as the paper
            says.
        global_pool: "avg" to classify the mean of the tokens, "" to classify each.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 16,
        embed_dims: int = 192,
        num_layers: int = 24,
        num_convs_patch_embed: int = 1,
        layers_with_dwconv: Sequence[int] = (),
        with_pos_embed: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        use_rms_norm: bool = False,
        mamba_cfg: dict[str, Any] | None = None,
        strict_official: bool = True,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.set_pool(global_pool)
        self.num_classes = num_classes
        self.num_features = embed_dims
        self.patch_embed = ConvPatchEmbed(in_chans, embed_dims, num_convs_patch_embed, patch_size)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = self.patch_embed.grid(*size)
        self.pos_embed = None
        if with_pos_embed:
            self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid_size), embed_dims))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.drop_after_pos = nn.Dropout(drop_rate)
        mixer = {"bias": True, "strict_official": strict_official, **(mamba_cfg or {})}
        layers = [
            PlainMambaLayer(embed_dims, mixer, use_rms_norm, i in layers_with_dwconv, rate)
            for i, rate in enumerate(drop_path_rates(drop_path_rate, num_layers))
        ]
        for layer in layers:
            layer.mamba.init_linear()
        self.layers = nn.ModuleList(layers)
        self.ln1 = nn.LayerNorm(embed_dims, eps=1e-6) if final_norm else nn.Identity()
        self.head = make_head(embed_dims, num_classes)
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dims, "reduction": patch_size}
            for i in range(num_layers)
        ]

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, in_chans, H, W] to tokens [B, L, C], row by row, and their grid."""
        x, grid = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, self.grid_size, grid)
        return self.drop_after_pos(x), grid

    def run_layers(self, x: Tensor, last: int) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens [B, L, C] of images after layers 0 to ``last``, and their grid."""
        x, grid = self.tokens(x)
        order = snake(grid[0], grid[1], x.device)
        outputs = []
        for layer in self.layers[: last + 1]:
            x = self.run(layer, x, grid, order)
            outputs.append(x)
        return outputs, grid

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps [B, C, h, w] after layers 0 to ``last``, not normalised."""
        outputs, grid = self.run_layers(x, last)
        return [tokens.transpose(1, 2).unflatten(2, grid) for tokens in outputs]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to normalised tokens [B, L, C], row by row."""
        return self.ln1(self.run_layers(x, len(self.layers) - 1)[0][-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, L, C] to logits [B, num_classes], or to their mean [B, C]."""
        x = x.mean(dim=1) if self.global_pool else x
        return x if pre_logits else self.head(x)

    def set_pool(self, global_pool: str) -> None:
        """How tokens are pooled before the classifier: avg, or "" for not at all."""
        if global_pool not in ("avg", ""):
            raise ZooError(f"global_pool is 'avg' or '', not {global_pool!r}")
        self.global_pool = global_pool

    def final_norm(self, x: Tensor) -> Tensor:
        """The last norm on a map [B, C, h, w]."""
        return self.ln1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def truncate(self, last: int, norm: bool) -> None:
        """Drop the layers after ``last``, and the last norm if ``norm``."""
        self.layers = self.layers[: last + 1]
        if norm:
            self.ln1 = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases."""
        kinds = ("pos_embed", "A_log", "D", "direction_Bs")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in kinds}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates."""
        stem = r"^pos_embed|^patch_embed"
        return {"stem": stem, "blocks": [(r"^layers\.(\d+)", None), (r"^ln1", (99999,))]}

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' classifier to ours; a position embedding is resized."""
        renamed = {
            key.removeprefix("backbone.").replace("head.fc.", "head."): value
            for key, value in state_dict.items()
        }
        given = renamed.get("pos_embed")
        if given is not None and self.pos_embed is not None:
            side = math.isqrt(given.shape[1])
            if given.shape[1] != self.pos_embed.shape[1] and side * side == given.shape[1]:
                renamed["pos_embed"] = resize_pos_embed(given, (side, side), self.grid_size)
        return renamed


class PlainMambaLayer(nn.Module):
    """x + mixer(norm(x)); then, if asked, a depthwise convolution, BatchNorm and GELU."""

    def __init__(
        self,
        dim: int,
        mixer: dict[str, Any],
        use_rms_norm: bool,
        with_dwconv: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5) if use_rms_norm else nn.LayerNorm(dim)
        self.mamba = PlainMamba2D(dim, **mixer)
        self.drop_path = DropPath(drop_path)
        self.dw = None
        if with_dwconv:
            conv = depthwise_conv(dim, 3, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(dim), nn.GELU())

    def forward(self, x: Tensor, grid: tuple[int, int], order: ScanOrder) -> Tensor:
        """Tokens [B, L, C] of a grid that is scanned in the given order."""
        x = x + self.drop_path(self.mamba(self.norm(x), grid, order))
        if self.dw is not None:
            x = self.dw(x.unflatten(1, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        return x


class PlainMamba2D(nn.Module):
    r"""Selective scan in continuous orders that know their direction (section 3.2 of the paper).

    All four orders share one set of parameters. The move into a cell (start, right, left, up, down)
    adds its learned vector to the cell's B.

    Args:
        d_model: width of the tokens.
        d_state: N, state size of each channel.
        expand: d_inner = int(expand * d_model).
        dt_rank: rank of the step-size projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initial step sizes,
            see :mod:`zoo.layers.ssm_init`.
        conv_size: side of the depthwise convolution, odd.
        conv_bias, bias: whether the convolution, and the input and output projection have one.
        init_layer_scale: initial value of a learned factor on every output channel; None for none.
        strict_official: see :class:`PlainMamba`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_size: int = 7,
        conv_bias: bool = True,
        bias: bool = False,
        init_layer_scale: float | None = None,
        strict_official: bool = True,
    ) -> None:
        super().__init__()
        self.strict_official = strict_official
        self.d_state = d_state
        self.dt_rank = R = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        d = int(expand * d_model)
        self.in_proj = nn.Linear(d_model, 2 * d, bias=bias)
        self.conv2d = depthwise_conv(d, conv_size, conv_bias)
        self.x_proj = nn.Linear(d, R + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(R, d)
        self.A_log = nn.Parameter(s4d_real_log(d, d_state))
        self.D = nn.Parameter(torch.ones(d))
        self.out_proj = nn.Linear(d, d_model, bias=bias)
        self.direction_Bs = nn.Parameter(torch.empty(5, d_state))
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)
        self.gamma = None
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model))
        with torch.no_grad():
            self.dt_proj.weight.copy_(
                dt_weight(d, R, dt_rank=R, dt_init=dt_init, dt_scale=dt_scale)
            )
            steps = dt_bias(d, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor)
            self.dt_proj.bias.copy_(steps)

    def init_linear(self) -> None:
        """The network's initial values of linear layers; the authors' reach the step sizes too."""
        linear = [self.in_proj, self.x_proj, self.out_proj]
        for module in [*linear, self.dt_proj] if self.strict_official else linear:
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, grid: tuple[int, int], order: ScanOrder) -> Tensor:
        """Tokens [B, L, d_model] of a grid to the same."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # [B, L, d]
        ys = self.scans(self.convolve(x, grid), order)
        return self.output(reduce(add, ys), z)

    def convolve(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Depthwise convolution and SiLU of tokens [B, L, d] of a grid."""
        x = F.silu(self.conv2d(x.unflatten(1, grid).permute(0, 3, 1, 2)))  # [B, d, H, W]
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    def scans(self, x: Tensor, order: ScanOrder) -> list[Tensor]:
        """Four scans of the tokens [B, L, d]; their outputs are back in the tokens' own order."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        once = at_least_fp32(at_zero(self.dt_proj, dt))
        rest = 2 * once if self.strict_official else once  # what a zero token gives
        dt, bias = split_bias(self.dt_proj, dt)  # [B, L, d]
        bias = rest - once if bias is None else rest
        A = -at_least_fp32(self.A_log).exp()
        D = at_least_fp32(self.D)
        moves = self.direction_Bs.to(B.dtype)[order.moves]  # [4, L, N]

        ys = []
        steps = dt if order.gaps is None else step_sizes(dt.transpose(1, 2), bias).transpose(1, 2)
        for k, (index, inverse) in enumerate(zip(order.index, order.inverse, strict=True)):
            dt_k, B_k, C_k = steps, B, C
            if not self.strict_official:
                dt_k, B_k, C_k = (permute(t, index, inverse) for t in (steps, B, C))
            sequences = (permute(x, index, inverse), dt_k, B_k + moves[k], C_k)
            u_k, dt_k, B_k, C_k = (t.transpose(1, 2) for t in sequences)  # [B, d or N, L]
            if order.gaps is None:
                y_k: Tensor = selective_scan(  # type: ignore[assignment]
                    u_k, dt_k, A, B_k, C_k, D, delta_bias=bias, delta_softplus=True
                )
            else:
                y_k = gap_scan(u_k, dt_k, A, B_k, C_k, D, F.softplus(rest), order.gaps[k])
            ys.append(permute(y_k.transpose(1, 2), inverse, index))  # [B, L, d]
        return ys

    def output(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate the sum of the scans [B, L, d] and bring it to the width of the tokens."""
        out = self.out_proj(y * F.silu(z))
        return out if self.gamma is None else out * self.gamma


class ConvPatchEmbed(nn.Module):
    """Patches by a convolutional stem: 7x7 with stride 2, some 3x3, then one of half a patch."""

    def __init__(self, in_chans: int, embed_dims: int, num_convs: int, patch_size: int) -> None:
        super().__init__()
        self.half_patch = patch_size // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        convs: list[nn.Module] = []
        for _ in range(num_convs):
            conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
            convs += [conv, nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*convs)
        self.projection = nn.Conv2d(64, embed_dims, self.half_patch, stride=self.half_patch)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches in the height and in the width of an image."""
        patch = 2 * self.half_patch
        return (height + patch - 1) // patch, (width + patch - 1) // patch

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, in_chans, H, W] to tokens [B, L, C] and their grid."""
        rows, columns = self.grid(*x.shape[2:])
        x = self.convs(self.stem(x))  # [B, 64, H / 2, W / 2]
        height, width = x.shape[2:]
        x = F.pad(x, (0, columns * self.half_patch - width, 0, rows * self.half_patch - height))
        return self.projection(x).flatten(2).transpose(1, 2), (rows, columns)


def resize_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embedding [1, L, C] of one grid for another (bicubic)."""
    if old == new:
        return pos_embed
    grid = at_least_fp32(pos_embed).unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic")
    return grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)


# The published variants. Accuracy is top-1 on ImageNet-1k at 224 pixels.

PLACES: dict[str, Any] = {"head": "head", "first_conv": "patch_embed.stem.0", "out_indices": 3}
L1: dict[str, Any] = {"embed_dims": 192, "layers_with_dwconv": (0,), "drop_path_rate": 0.2}
L2: dict[str, Any] = {"embed_dims": 384, "num_convs_patch_embed": 2, "drop_path_rate": 0.2}
L3: dict[str, Any] = {**L2, "embed_dims": 448, "num_layers": 36, "drop_path_rate": 0.4}
_HUB = "hf://ChenhongyiYang/PlainMamba/"


@register_backbone(source=_HUB + "l1.pth", parameters=7_551_656, **PLACES)
def plainmamba_l1(**kwargs: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters, 77.9 % top-1."""
    return PlainMamba(**{**L1, **kwargs})


@register_backbone(source=_HUB + "l2.pth", parameters=26_145_832, **PLACES)
def plainmamba_l2(**kwargs: Any) -> PlainMamba:
    """PlainMamba-L2: 26.1 M parameters, 81.6 % top-1."""
    return PlainMamba(**{**L2, **kwargs})


@register_backbone(source=_HUB + "l3.pth", parameters=50_956_456, **PLACES)
def plainmamba_l3(**kwargs: Any) -> PlainMamba:
    """PlainMamba-L3: 51.0 M parameters, 82.3 % top-1."""
    return PlainMamba(**{**L3, **kwargs})
