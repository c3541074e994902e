"""``Block``, ``GatedMLP`` and ``MHA`` of mamba_ssm, with its arguments, parameters and caches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.compat.layer_norm import RMSNorm
from zoo.compat.mixers import Device, cast, on_device
from zoo.errors import ZooError
from zoo.layers import causal_attention, mamba_block
from zoo.layers.cache import KeyValues

__all__ = ["MHA", "Block", "GatedMLP", "add_norm"]


def add_norm(
    norm: nn.Module, x: Tensor, residual: Tensor | None, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream; returns the normalised sum in the dtype of x, and the sum."""
    if isinstance(norm, RMSNorm):
        return norm(x, residual, prenorm=True, residual_in_fp32=residual_in_fp32)
    stream = x if residual is None else residual + x
    weight: Any = norm.weight
    out = norm(stream if weight is None else stream.to(weight.dtype)).to(x.dtype)
    return out, stream.float() if residual_in_fp32 else stream


class Block(nn.Module):
    """Add, norm, mixer; then add, norm, MLP, if there is one.

    Args:
        dim: width of the tokens.
        mixer_cls, mlp_cls, norm_cls: build mixer, MLP and norms for that width; ``nn.Identity``
            stands for no MLP.
        fused_add_norm: taken; there is one path.
        residual_in_fp32: keep the residual stream in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Output of the block before ``[B, L, dim]`` and the stream; returns the same two."""
        in_fp32 = self.residual_in_fp32
        x, residual = add_norm(self.norm, hidden_states, residual, in_fp32)
        x = self.mixer(x, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            x, residual = add_norm(self.norm2, x, residual, in_fp32)
            x = self.mlp(x)
        return x, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The mixer's."""
        mixer: Any = self.mixer
        return mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


class _Block1(Block):
    """The block of mamba_ssm 1, which has no MLP."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


version_1 = SimpleNamespace(Block=_Block1)


class GatedMLP(mamba_block.GatedMLP):
    """:class:`zoo.layers.mamba_block.GatedMLP` with the arguments of mamba_ssm's.

    Args:
        in_features: width of the tokens.
        hidden_features: width in between, by default 8/3 of it; rounded up to ``multiple_of``.
        out_features: width of the result, by default that of the tokens.
        activation: of the gate.
        bias: whether both layers have one.
        multiple_of: see ``hidden_features``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        hidden = hidden_features if hidden_features is not None else int(8 * in_features / 3)
        with on_device(device):
            super().__init__(in_features, hidden, bias, multiple_of)
            if out_features is not None and out_features != in_features:
                self.fc2 = nn.Linear(self.fc2.in_features, out_features, bias=bias)
        cast(self, dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * self.activation(gate))


class MHA(causal_attention.SelfAttention):
    """:class:`zoo.layers.causal_attention.SelfAttention` with the arguments of mamba_ssm's ``MHA``.

    The convolution's state holds its inputs, so that a hybrid decodes as it reads; mamba_ssm keeps
    the outputs there.

    Args:
        embed_dim, num_heads, num_heads_kv, head_dim, mlp_dim, qkv_proj_bias: as there.
        out_proj_bias, softmax_scale, causal, d_conv, rotary_emb_dim: as there.
        rotary_emb_base, rotary_emb_interleaved: as there.
        layer_idx: key of the layer's state in ``inference_params``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with on_device(device):
            super().__init__(
                embed_dim, num_heads, num_heads_kv, head_dim, mlp_dim, qkv_proj_bias,
                out_proj_bias, softmax_scale, causal, d_conv, rotary_emb_dim, rotary_emb_base,
                rotary_emb_interleaved,
            )  # fmt: skip
        cast(self, dtype)
        self.embed_dim, self.layer_idx = embed_dim, layer_idx
        self.d_conv, self.rotary_emb_dim = d_conv, rotary_emb_dim

    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:  # type: ignore[override]
        """``[B, n, embed_dim]`` to the same; ``inference_params`` as for a Mamba layer."""
        if inference_params is None:
            return super().forward(x)
        if self.layer_idx is None:
            raise ZooError("MHA: generation needs layer_idx in the constructor")
        kept = inference_params.key_value_memory_dict
        if inference_params.seqlen_offset == 0 or self.layer_idx not in kept:
            kept[self.layer_idx] = self.allocate_state(len(x))
        return super().forward(x, kept[self.layer_idx])

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> KeyValues:
        """The state before the first token, which grows as it goes."""
        return self.allocate_state(batch_size)
