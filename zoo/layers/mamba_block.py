"""The residual block of Mamba's models: a mixer, then perhaps a gated MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.norms import add_norm


class GatedMLP(nn.Module):
    """fc2(a · silu(b)) with a, b = fc1(x).

    Args:
        d_model: width of the tokens.
        hidden: width in between, rounded up to a multiple of ``multiple_of``.
        bias: whether both layers have one.
        multiple_of: see ``hidden``.
    """

    def __init__(
        self, d_model: int, hidden: int, bias: bool = False, multiple_of: int = 128
    ) -> None:
        super().__init__()
        hidden = -(-hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * F.silu(gate))


class MambaBlock(nn.Module):
    """Add, norm, mixer; then add, norm, MLP, if there is one.

    What a block returns has not been added to the residual stream yet: the next block or the final
    norm does it (:func:`zoo.layers.norms.add_norm`).

    Args:
        mixer: such as :class:`zoo.layers.mamba.Mamba` or :class:`zoo.layers.mamba2.Mamba2`.
        norm: builds a norm of the stream.
        mlp: such as :class:`GatedMLP`; None for none.
        residual_in_fp32: keep the stream in float32 also where the rest is in half precision.
    """

    def __init__(
        self,
        mixer: nn.Module,
        norm: Callable[[], nn.Module],
        mlp: nn.Module | None = None,
        residual_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.norm, self.mixer, self.mlp = norm(), mixer, mlp
        self.norm2 = None if mlp is None else norm()

    def forward(
        self, x: Tensor, residual: Tensor | None = None, **mixer_args: Any
    ) -> tuple[Tensor, Tensor]:
        """Output of the block before [B, L, C] and the stream; returns the same two.

        Args:
            x: output of the block before, or the embeddings.
            residual: the stream without x; None before the first block.
            mixer_args: such as ``state`` and ``seq_idx``.
        """
        x, residual = add_norm(x, residual, self.norm, self.residual_in_fp32)
        x = self.mixer(x, **mixer_args)
        if self.mlp is not None and self.norm2 is not None:
            x, residual = add_norm(x, residual, self.norm2, self.residual_in_fp32)
            x = self.mlp(x)
        return x, residual
