"""Vision Mamba, Vim (Zhu et al., ICML 2024, arXiv 2401.09417).

A flat sequence of patch tokens through bidirectional Mamba mixers. Outputs and gradients agree with
the authors' code (hustvl/Vim, commit dd0358a) on random weights, its rotary embedding included; its
random token orders, which no published model uses, are not here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, lecun_normal_
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.mamba import Mamba
from zoo.layers.norms import add_norm
from zoo.layers.precision import at_least_fp32
from zoo.models.vision._backbone import Backbone, drop_path_rates, make_head, register_backbone

POOLS = ("none", "mean", "max", "all")


class Vim(Backbone):
    """Vim classifier and feature extractor.

    Arguments have the names of the authors' ``VisionMamba``. Images of other sizes than
    ``img_size``
    are fine from one patch on: the position embedding is resized.

    Args:
        img_size: height and width of the training images.
        patch_size, stride: side and distance of the patches.
        depth: layers.
        embed_dim: width of the tokens.
        d_state: state size of each channel.
        in_chans: input channels.
        num_classes: outputs; 0 for features only.
        ssm_cfg: further arguments of :class:`zoo.layers.mamba.Mamba`.
        drop_rate: dropout after the position embedding.
        drop_path_rate: stochastic depth of the last addition, rising linearly from 0.
        norm_epsilon, rms_norm: eps of the norms, and whether they are RMSNorm or LayerNorm.
        residual_in_fp32: keep the residual stream in float32 also under autocast.
        if_bidirectional: layers work in pairs, the second on the reversed sequence. Both residual
            streams are added, as the authors do, which doubles what entered.
        final_pool_type: without a class token: "none" for the last token, "mean" over tokens, "max"
            of the logits over tokens, "all" for logits of every token. With one it has no effect.
        if_abs_pos_embed: learned position embedding.
        if_rope, if_rope_residual: rotary position embedding of what enters each layer, and of the
            residual stream as well. The first token is left as it is where there is a class token,
            wherever that stands, as the authors do.
        pt_hw_seq_len: patches, per side, that the angles are scaled to.
        bimamba_type, if_divide_out, init_layer_scale: see :class:`zoo.layers.mamba.Mamba`.
        if_cls_token: a class token whose output is classified.
        use_double_cls_token: one before and one after the patches, outputs averaged.
        use_middle_cls_token: the single one stands in the middle of the patches, not before them.
    """

    cls_token: nn.Parameter
    cls_token_head: nn.Parameter
    cls_token_tail: nn.Parameter

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        depth: int = 24,
        embed_dim: int = 192,
        d_state: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        ssm_cfg: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
        if_bidirectional: bool = False,
        final_pool_type: str = "none",
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
        if_rope_residual: bool = False,
        pt_hw_seq_len: int = 14,
        bimamba_type: str = "v2",
        if_cls_token: bool = True,
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
    ) -> None:
        super().__init__()
        if final_pool_type not in POOLS:
            raise ZooError(f"final_pool_type is one of {', '.join(POOLS)}, not {final_pool_type}")
        if if_bidirectional and depth % 2:
            raise ZooError(f"if_bidirectional pairs the layers: depth is even, not {depth}")
        self.num_classes = num_classes
        self.num_features = self.embed_dim = embed_dim
        self.if_bidirectional = if_bidirectional
        self.residual_in_fp32 = residual_in_fp32
        self.final_pool_type = final_pool_type
        self.num_tokens = (2 if use_double_cls_token else 1) if if_cls_token else 0
        self.use_middle_cls_token = use_middle_cls_token

        self.patch_embed = PatchEmbed(patch_size, stride, in_chans, embed_dim)
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.grid_size = self.patch_embed.grid(*size)
        tokens = math.prod(self.grid_size) + self.num_tokens
        names = {0: (), 1: ("cls_token",), 2: ("cls_token_head", "cls_token_tail")}
        for name in names[self.num_tokens]:
            self.register_parameter(name, _embedding(1, embed_dim))
        self.pos_embed = _embedding(tokens, embed_dim) if if_abs_pos_embed else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope = None
        if if_rope:
            if self.num_tokens == 2 or embed_dim % 4:
                raise ZooError("if_rope: expected embed_dim % 4 == 0 and at most one class token")
            self.rope = RotaryEmbedding(embed_dim, self.grid_size, pt_hw_seq_len)
        self.if_rope_residual = if_rope_residual

        norm = nn.RMSNorm if rms_norm else nn.LayerNorm
        # The rates belong to the additions: layer i adds the output of layer i - 1.
        rates = [0.0, *drop_path_rates(drop_path_rate, depth)][:depth]
        options = {
            "d_state": d_state,
            "bimamba_type": bimamba_type,
            "if_divide_out": if_divide_out,
            "init_layer_scale": init_layer_scale,
            **(ssm_cfg or {}),
        }
        mixers = [Mamba(embed_dim, **options) for _ in rates]
        self.layers = nn.ModuleList(
            Block(mixer, norm(embed_dim, eps=norm_epsilon), rate, residual_in_fp32)
            for mixer, rate in zip(mixers, rates, strict=True)
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm_f: nn.Module = norm(embed_dim, eps=norm_epsilon)
        self.head = make_head(embed_dim, num_classes)
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dim, "reduction": stride}
            for i in range(depth)
        ]
        for mixer in mixers:
            if bimamba_type == "v2":
                nn.init.zeros_(mixer.dt_proj_b.bias)
            # One addition a layer: the residual stream's variance shall not grow with depth.
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(depth)

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, in_chans, H, W] to tokens [B, L, C] with class tokens, and their grid."""
        x, grid = self.patch_embed(x)  # [B, M, C]
        places = self.token_positions(x.shape[1])
        if self.num_tokens == 2:
            ends = [
                t.expand(x.shape[0], -1, -1) for t in (self.cls_token_head, self.cls_token_tail)
            ]
            x = torch.cat([ends[0], x, ends[1]], dim=1)
        elif self.num_tokens == 1:
            cls_token = self.cls_token.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, : places[0]], cls_token, x[:, places[0] :]], dim=1)
        if self.pos_embed is not None:
            x = x + self.resize_pos_embed(self.pos_embed, self.grid_size, grid)
        return self.pos_drop(x), grid

    def token_positions(self, patches: int) -> list[int]:
        """Places of the class tokens in the sequence of patches and tokens."""
        middle = patches // 2 if self.use_middle_cls_token else 0
        return {0: [], 1: [middle], 2: [0, patches + 1]}[self.num_tokens]

    def resize_pos_embed(
        self, pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]
    ) -> Tensor:
        """Position embedding [1, L, C] of a grid for another, bicubic; class tokens keep theirs."""
        if old == new:
            return pos_embed
        places = self.token_positions(math.prod(old))
        grid = at_least_fp32(_without(pos_embed, places)).unflatten(1, old).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=new, mode="bicubic")
        resized = grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)
        for place, target in zip(places, self.token_positions(math.prod(new)), strict=True):
            token = pos_embed[:, place : place + 1]
            resized = torch.cat([resized[:, :target], token, resized[:, target:]], dim=1)
        return resized

    def rotate(
        self, x: Tensor, residual: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """What enters a layer, rotated by its places in the grid if there is a rotary embedding."""
        if self.rope is None:
            return x, residual
        if residual is not None and self.if_rope_residual:
            residual = self.rope(residual, grid, self.num_tokens)
        return self.rope(x, grid, self.num_tokens), residual

    def run_layers(
        self, x: Tensor, last: int, grid: tuple[int, int]
    ) -> list[tuple[Tensor, Tensor]]:
        """Output and residual stream after each of layers 0 to ``last``, not yet added."""
        states: list[tuple[Tensor, Tensor]] = []
        residual = None
        if not self.if_bidirectional:
            for layer in self.layers[: last + 1]:
                x, residual = self.rotate(x, residual, grid)
                x, residual = self.run(layer, x, residual)
                states.append((x, residual))
            return states
        for i in range(0, last + 1, 2):
            x, residual = self.rotate(x, residual, grid)
            flipped = None if residual is None else residual.flip(1)
            x_f, residual_f = self.run(self.layers[i], x, residual)
            x_b, residual_b = self.run(self.layers[i + 1], x.flip(1), flipped)
            x, residual = x_f + x_b.flip(1), residual_f + residual_b.flip(1)
            states += [(x, residual)] * 2
        return states

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to normalised tokens [B, L, C], class tokens among them."""
        x, grid = self.tokens(x)
        x, residual = self.run_layers(x, len(self.layers) - 1, grid)[-1]
        return add_norm(self.drop_path(x), residual, self.norm_f, self.residual_in_fp32)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, L, C] to logits [B, num_classes], or to what is classified [B, C]."""
        places = self.token_positions(x.shape[1] - self.num_tokens)
        if places:
            x = x[:, places[0]] if len(places) == 1 else (x[:, places[0]] + x[:, places[1]]) / 2
        elif self.final_pool_type == "none":
            x = x[:, -1]
        elif self.final_pool_type == "mean":
            x = x.mean(dim=1)
        if pre_logits:
            return x
        x = self.head(x)
        return x.amax(dim=1) if self.final_pool_type == "max" and not places else x

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps [B, C, h, w] of the residual stream after layers 0 to ``last``, no class tokens."""
        x, grid = self.tokens(x)
        places = self.token_positions(math.prod(grid))
        return [
            _without(x + residual, places).transpose(1, 2).unflatten(2, grid)
            for x, residual in self.run_layers(x, last, grid)
        ]

    def final_norm(self, x: Tensor) -> Tensor:
        """norm_f on a map [B, C, h, w]."""
        return self.norm_f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def set_pool(self, global_pool: str) -> None:
        """How to pool without a class token: avg, max, or "" for not at all."""
        names = {"avg": "mean", "max": "max", "": "all", "token": self.final_pool_type}
        if global_pool not in names:
            raise ZooError(
                f"global_pool is one of {', '.join(map(repr, names))}, not {global_pool!r}"
            )
        self.final_pool_type = names[global_pool]

    def truncate(self, last: int, norm: bool) -> None:
        """Drop the layers after ``last``, and norm_f if ``norm``."""
        self.layers = self.layers[: last + 1 + (self.if_bidirectional and last % 2 == 0)]
        if norm:
            self.norm_f = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases."""
        return {"pos_embed", "cls_token", "cls_token_head", "cls_token_tail"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates."""
        stem = r"^cls_token|^pos_embed|^patch_embed"
        return {"stem": stem, "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]}

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names are ours; a position embedding for another (square) grid is resized, and
        the rotary one, which is not learned, is our own."""
        if self.rope is not None:
            own = {f"rope.{name}": value for name, value in self.rope.named_buffers()}
            state_dict = {**state_dict, **own}
        given = state_dict.get("pos_embed")
        if given is None or self.pos_embed is None or given.shape[1] == self.pos_embed.shape[1]:
            return state_dict
        side = math.isqrt(given.shape[1] - self.num_tokens)
        if side * side + self.num_tokens != given.shape[1]:
            return state_dict
        resized = self.resize_pos_embed(given, (side, side), self.grid_size)
        return {**state_dict, "pos_embed": resized}


class PatchEmbed(nn.Module):
    """Patches by a strided convolution; what is left over at the right and bottom is not seen."""

    def __init__(self, patch_size: int, stride: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = stride
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=stride)
        lecun_normal_(self.proj.weight)
        self.proj.bias.data.zero_()  # type: ignore[union-attr]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches in the height and in the width of an image."""
        if min(height, width) < self.patch_size:
            raise ZooError(
                f"images are at least one patch ({self.patch_size} pixels) high and wide, "
                f"not {height}x{width}"
            )
        rows, columns = ((side - self.patch_size) // self.stride for side in (height, width))
        return rows + 1, columns + 1

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, in_chans, H, W] to tokens [B, M, C] and their grid."""
        grid = self.grid(*x.shape[2:])
        return self.proj(x).flatten(2).transpose(1, 2), grid


class RotaryEmbedding(nn.Module):
    """Pairs of channels turned by angles: the first half of the channels by the row of a token, the
    other by its column (the authors' ``VisionRotaryEmbeddingFast``).

    Args:
        dim: channels.
        grid: rows and columns, for which the angles are kept.
        scaled_to: rows and columns, however many there are, count from 0 to this.
    """

    def __init__(self, dim: int, grid: tuple[int, int], scaled_to: int) -> None:
        super().__init__()
        self.dim, self.grid, self.scaled_to = dim, grid, scaled_to
        cos, sin = self.angles(grid)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def angles(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L, dim] for the tokens of a grid, row by row."""
        speeds = 10000 ** -(torch.arange(0, self.dim // 2, 2) / (self.dim // 2))
        turns = [
            (torch.arange(n)[:, None] / n * self.scaled_to * speeds).repeat_interleave(2, dim=1)
            for n in grid
        ]
        rows = turns[0][:, None].expand(-1, grid[1], -1)
        columns = turns[1].expand(grid[0], -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor, grid: tuple[int, int], skip: int) -> Tensor:
        """Tokens [B, skip + L, dim] of a grid; the first ``skip`` stay as they are."""
        kept = (self.freqs_cos, self.freqs_sin)
        cos, sin = kept if grid == self.grid else self.angles(grid)
        cos, sin = cos.to(x), sin.to(x)
        tokens = x[:, skip:]
        turned = torch.stack([-tokens[..., 1::2], tokens[..., ::2]], dim=-1).flatten(2)
        return torch.cat([x[:, :skip], tokens * cos + turned * sin], dim=1)


class Block(nn.Module):
    """Add the output of the block before to the residual stream, then mix the normalised stream."""

    def __init__(
        self, mixer: Mamba, norm: nn.Module, drop_path: float, residual_in_fp32: bool
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm
        self.drop_path = DropPath(drop_path)
        self.residual_in_fp32 = residual_in_fp32

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output of the block before and the stream [B, L, C] (None at first) to the same."""
        x = x if residual is None else self.drop_path(x)
        x, residual = add_norm(x, residual, self.norm, self.residual_in_fp32)
        return self.mixer(x), residual


def _without(x: Tensor, places: list[int]) -> Tensor:
    """Tokens [B, L, C] without those at ``places``: none, a single one, or both ends."""
    if len(places) == 1:
        return torch.cat([x[:, : places[0]], x[:, places[0] + 1 :]], dim=1)
    return x[:, 1:-1] if places else x


def _embedding(tokens: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02))


# The published variants. Accuracy is top-1 on ImageNet-1k at 224 pixels.

PLACES: dict[str, Any] = {"head": "head", "first_conv": "patch_embed.proj", "out_indices": 3}


def _vim(kwargs: dict[str, Any], **variant: Any) -> Vim:
    return Vim(**{"final_pool_type": "mean", **variant, **kwargs})


@register_backbone(
    source="hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth",
    parameters=7_148_008,
    **PLACES,
)
def vim_tiny(**kwargs: Any) -> Vim:
    """Vim-Ti: 7.1 M parameters, 76.1 % top-1."""
    return _vim(kwargs, embed_dim=192)


@register_backbone(
    source="hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_ft_78p3acc.pth",
    parameters=7_250_344,
    **PLACES,
)
def vim_tiny_stride8(**kwargs: Any) -> Vim:
    """Vim-Ti+, fine-tuned on overlapping patches: 7.3 M parameters, 78.3 % top-1."""
    return _vim(kwargs, embed_dim=192, stride=8)


@register_backbone(
    source="hf://hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
    parameters=25_796_584,
    **PLACES,
)
def vim_small(**kwargs: Any) -> Vim:
    """Vim-S: 25.8 M parameters, 80.5 % top-1."""
    return _vim(kwargs, embed_dim=384)


@register_backbone(
    source="hf://hustvl/Vim-small-midclstok/vim_s_midclstok_ft_81p6acc.pth",
    parameters=26_001_256,
    **PLACES,
)
def vim_small_stride8(**kwargs: Any) -> Vim:
    """Vim-S+, fine-tuned on overlapping patches: 26.0 M parameters, 81.6 % top-1."""
    return _vim(kwargs, embed_dim=384, stride=8)


@register_backbone(
    source="hf://hustvl/Vim-base-midclstok/vim_b_midclstok_81p9acc.pth",
    parameters=97_598_440,
    **PLACES,
)
def vim_base(**kwargs: Any) -> Vim:
    """Vim-B: 97.6 M parameters, 81.9 % top-1."""
    return _vim(kwargs, embed_dim=768)
