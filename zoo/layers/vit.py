"""Plain vision transformer (Dosovitskiy et al. 2021) as an encoder of maps, of timm's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.sizes import check_multiple


class ViTTaps(nn.Module):
    """Maps from several layers of a transformer without class token.

    ``forward``: [B, 3, H, W] -> a map [B, embed_dim, H/patch, W/patch] of each tap, the last one
    normalised. timm's checkpoints load; their position embeddings are resized, and so are ours for
    pictures of another size.

    Args:
        img_size: (height, width) that the position embedding is made for.
        patch_size: side of a patch.
        embed_dim, depth, num_heads: of the transformer.
        taps: layers whose output is given, counted from 1; the last is ``depth``.
        drop_path_rate: stochastic depth of the last layer, from 0 in the first.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        taps: Sequence[int] = (3, 6, 9, 12),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if list(taps) != sorted(set(taps)) or not taps or taps[-1] != depth or taps[0] < 1:
            raise ZooError(f"taps {list(taps)}: expected rising layer numbers that end in {depth}")
        self.num_features, self.stride, self.taps = embed_dim, patch_size, tuple(taps)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim, strict_img_size=False)
        self.grid = self.patch_embed.grid_size
        # its first entry is the class token's in timm's checkpoints, and unused here
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm)
            for rate in rates
        )
        self.norm = norm(embed_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """The position embedding is not shrunk."""
        return {"pos_embed"}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Picture -> maps."""
        check_multiple(image, self.stride)
        grid = [side // self.stride for side in image.shape[-2:]]
        pos_embed = self.pos_embed
        if tuple(grid) != self.grid:
            pos_embed = resample_abs_pos_embed(pos_embed, grid, list(self.grid))
        x = self.patch_embed(image) + pos_embed[:, 1:]  # [B, hw, C]
        maps = []
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x)
            if layer in self.taps:
                tap = self.norm(x) if layer == len(self.blocks) else x
                maps.append(tap.transpose(1, 2).unflatten(2, grid))
        return maps

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's vision transformer without what stands above the last norm."""
        ours = self.state_dict()
        kept = {name: value for name, value in state_dict.items() if name in ours}
        if "pos_embed" in kept and kept["pos_embed"].shape != self.pos_embed.shape:
            kept["pos_embed"] = resample_abs_pos_embed(kept["pos_embed"], list(self.grid))
        return kept
