"""Parts of VMamba-like backbones, on channel-last maps [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import DropPath, GluMlp, Mlp
from torch import Tensor, nn

from zoo.layers.ss2d import SS2D, Permute

# Positions in the Sequentials are part of the names in the official weights.


class VSSBlock(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm(x)), on maps [B, H, W, C] (figure 3 of the paper).

    Args:
        dim: C.
        op: :class:`SS2D` or :class:`SSD2D`.
        ssm: its keyword arguments.
        mlp: mlp_ratio (0 for no MLP), act_layer, drop, gated.
        drop_path: stochastic depth of both branches.
        norm: norm layer over the last dimension.
    """

    def __init__(
        self,
        dim: int,
        op: type[SS2D],
        ssm: dict[str, Any],
        mlp: dict[str, Any],
        drop_path: float = 0.0,
        norm: type[nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.op = op(dim, **ssm)
        self.drop_path = DropPath(drop_path)
        self.mlp: nn.Module | None = None
        if mlp["mlp_ratio"] > 0:
            hidden, drop = int(dim * mlp["mlp_ratio"]), mlp["drop"]
            self.norm2 = norm(dim)
            if mlp["gated"]:
                self.mlp = GluMlp(dim, 2 * hidden, act_layer=mlp["act_layer"], drop=(0.0, drop))
            else:
                self.mlp = Mlp(dim, hidden, act_layer=mlp["act_layer"], drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over the channels of a map [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def stem_v1(in_chans: int, dim: int, patch_size: int, norm: type[nn.Module]) -> nn.Sequential:
    """One convolution: [B, in_chans, H, W] to [B, H / p, W / p, dim]."""
    conv = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
    return nn.Sequential(conv, Permute(0, 2, 3, 1), norm(dim))


def conv_downsample(kernel_size: int, padding: int) -> Callable[..., nn.Sequential]:
    """Maker of a strided convolution and a norm, on maps [B, H, W, C]."""

    def make(dim: int, out_dim: int, norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
        conv = nn.Conv2d(dim, out_dim, kernel_size, stride=2, padding=padding)
        return nn.Sequential(Permute(0, 3, 1, 2), conv, Permute(0, 2, 3, 1), norm(out_dim))

    return make
