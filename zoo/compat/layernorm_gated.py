"""Gated norms: ``mamba_ssm.ops.triton.layernorm_gated``, ``k_activations``, and fla's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError

__all__ = [
    "FusedRMSNormGated",
    "LayerNorm",
    "RMSNorm",
    "layernorm_fn",
    "rms_norm_ref",
    "rmsnorm_fn",
    "swiglu",
]


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """``norm(x) * silu(z)``, or ``norm(x * silu(z))`` without ``norm_before_gate``.

    Args:
        x, z: [..., D].
        weight, bias: [D].
        eps: of the norm.
        group_size: channels that are normalised together; default all D.
        norm_before_gate: the order of norm and gate.
        is_rms_norm: root mean square instead of mean and variance.

    Returns:
        [..., D] in the dtype of x; computed in float32.
    """
    size = x.shape[-1] if group_size is None else group_size
    if size < 1 or x.shape[-1] % size:
        raise ZooError(f"group_size={group_size} does not divide the {x.shape[-1]} channels of x")
    out = x.float()
    gate = None if z is None else F.silu(z.float())
    if gate is not None and not norm_before_gate:
        out = out * gate
    out = out.unflatten(-1, (-1, size))
    normalise = F.rms_norm if is_rms_norm else F.layer_norm
    out = normalise(out, (size,), eps=eps).flatten(-2) * weight.float()
    if bias is not None:
        out = out + bias.float()
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """:func:`layernorm_fn` with ``is_rms_norm``."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """:func:`rmsnorm_fn`, always in float32."""
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


def swiglu(xy: Tensor) -> Tensor:
    """silu(x) y of the two halves of ``[..., 2 D]``."""
    x, y = xy.chunk(2, dim=-1)
    return (F.silu(x.float()) * y.float()).to(xy.dtype)


class LayerNorm(nn.Module):
    """Module of :func:`layernorm_fn`.

    Args:
        hidden_size: D.
        eps, group_size, norm_before_gate: as there.
        device, dtype: of weight and bias.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(hidden_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """[..., D] to [..., D]."""
        return layernorm_fn(
            x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate
        )


class RMSNorm(nn.Module):
    """Module of :func:`rmsnorm_fn`; arguments as for :class:`LayerNorm`."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """[..., D] to [..., D]."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)


class FusedRMSNormGated(nn.Module):
    """fla's ``norm(x) * activation(g)``.

    Args:
        hidden_size: D.
        elementwise_affine: whether there is a weight.
        eps: of the norm.
        activation: "swish" (or "silu"), or "sigmoid".
        device, dtype: of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("swish", "silu", "sigmoid"):
            raise ZooError(f"activation must be 'swish', 'silu' or 'sigmoid', not '{activation}'")
        self.hidden_size, self.eps, self.activation = hidden_size, eps, activation
        weight = torch.ones(hidden_size, device=device, dtype=dtype)
        self.weight: nn.Parameter | None
        self.register_parameter("weight", nn.Parameter(weight) if elementwise_affine else None)
        self.register_parameter("bias", None)

    def forward(
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[..., D] to [..., D] in the dtype of x; with ``prenorm`` also ``x + residual``."""
        total = x.float() if residual is None else x.float() + residual.float()
        gate = torch.sigmoid(g.float()) if self.activation == "sigmoid" else F.silu(g.float())
        weight = None if self.weight is None else self.weight.float()
        out = (F.rms_norm(total, (self.hidden_size,), weight, self.eps) * gate).to(x.dtype)
        if not prenorm:
            return out
        kept = x if residual is None else residual
        return out, total.to(torch.float32 if residual_in_fp32 else kept.dtype)
