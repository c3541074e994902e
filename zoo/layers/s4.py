"""The S4 block: a convolution with the kernel of a state space model, and a layer that mixes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_kernel import DiagonalKernel, NPLRKernel
from zoo.layers.ssm_recurrence import SSMState
from zoo.ops import fft_conv

#: Kernels by the names of S4's code.
KERNELS = {
    "dplr": NPLRKernel, "nplr": NPLRKernel, "s4": NPLRKernel,
    "diag": DiagonalKernel, "s4d": DiagonalKernel,
}  # fmt: skip
ACTIVATIONS = {
    "id": nn.Identity, "identity": nn.Identity, "linear": nn.Identity, "tanh": nn.Tanh,
    "relu": nn.ReLU, "gelu": nn.GELU, "elu": nn.ELU, "swish": nn.SiLU, "silu": nn.SiLU,
    "glu": nn.GLU, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus,
}  # fmt: skip


def activation_of(name: str | None) -> nn.Module:
    """An activation over the last dimension; None for none.

    Raises:
        ZooError: if the name is unknown.
    """
    if name is None:
        return nn.Identity()
    if name not in ACTIVATIONS:
        raise ZooError(f"an activation is one of {', '.join(ACTIVATIONS)}, not '{name}'")
    return ACTIVATIONS[name]()


def linear_with(d_in: int, d_out: int, activation: str | None) -> nn.Module:
    """A linear layer with an activation after it; "glu" doubles the layer and halves again."""
    linear = nn.Linear(d_in, 2 * d_out if activation == "glu" else d_out)
    return linear if activation is None else nn.Sequential(linear, activation_of(activation))


class TiedDropout(nn.Dropout):
    """Dropout of whole channels of ``[B, L, H]``: one mask for all steps."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, L, H]`` to the same."""
        if not self.training:
            return input
        return input * F.dropout(torch.ones_like(input[:, :1]), self.p)


def dropout_of(p: float, tie: bool) -> nn.Module:
    """Dropout over ``[B, L, H]``, of channels if tied."""
    if not 0 <= p < 1:
        raise ZooError(f"dropout is at least 0 and below 1, got {p}")
    return nn.Identity() if p == 0 else TiedDropout(p) if tie else nn.Dropout(p)


class SSMConv(nn.Module):
    """Every feature convolved with its kernels, plus a skip: ``[B, L, H]`` to ``[B, L, C H]``.

    Args:
        d_model: H.
        l_max: longest input; None for no bound.
        channels: C, outputs of each feature.
        swap_channels: the channels of a feature lie together, not those of a channel.
        bidirectional: a second kernel looks ahead, from the next step on.
        activation: after the convolution; "glu" takes two channels for each.
        dropout, tie_dropout: see :func:`dropout_of`.
        drop_kernel: dropout of the kernel's values.
        mode: kernel, see ``KERNELS``, or its class.
        skip: D u is added.
        kernel_args: of the kernel.

    Raises:
        ZooError: if the mode is unknown.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        swap_channels: bool = False,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        drop_kernel: float = 0.0,
        mode: str | type[DiagonalKernel] = "dplr",
        skip: bool = True,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        if isinstance(mode, str) and mode not in KERNELS:
            raise ZooError(f"mode is one of {', '.join(KERNELS)}, not '{mode}'")
        self.l_max, self.bidirectional, self.swap_channels = l_max, bidirectional, swap_channels
        self.d_output = d_model * channels
        channels *= 2 if activation == "glu" else 1
        self.activation = activation_of(activation)
        self.D = nn.Parameter(torch.randn(channels, d_model)) if skip else None
        kernel = KERNELS[mode] if isinstance(mode, str) else mode
        self.kernel = kernel(d_model, channels * (2 if bidirectional else 1), l_max, **kernel_args)
        self.drop = dropout_of(dropout, tie_dropout)
        self.drop_kernel = dropout_of(drop_kernel, False)

    def forward(self, x: Tensor, state: SSMState | None = None, rate: float = 1.0) -> Tensor:
        """A whole sequence, or the next part of one.

        Args:
            x: ``[B, L, H]``.
            state: of :meth:`allocate_state`; x goes on where it stands, and it advances. A single
                step without gradients takes the recurrence, anything else the convolution.
            rate: sampling is so many times slower than in training.

        Raises:
            ZooError: if x is longer than ``l_max``, or a state is given to a convolution in both
                directions.
        """
        length = x.shape[1]
        if self.l_max is not None and length > round(self.l_max / rate):
            raise ZooError(
                f"the kernel is {round(self.l_max / rate)} steps long (l_max {self.l_max}, rate "
                f"{rate:g}), got an input of {length}: cut it into parts and pass the state, or "
                "set l_max"
            )
        if state is not None and length == 1 and not torch.is_grad_enabled():
            return self._step(x, state)
        u = at_least_fp32(x.transpose(1, 2))  # [B, H, L]
        before = None if state is None else state.recurrence.natural(state.ssm)
        K, K_state = self.kernel(length, rate, before)
        K = self.drop_kernel(K)
        ahead: Tensor | None = None
        if self.bidirectional:
            if state is not None:
                raise ZooError("a convolution in both directions has no state: it sees the end")
            K, ahead = K.chunk(2)
        y = fft_conv(u, K, self.D, k_future=ahead)  # [B, C, H, L]
        if state is not None and K_state is not None:
            y = y + K_state
            state.ssm = state.recurrence.advance(state.ssm, u)
        y = self._channels(y).transpose(1, 2).to(x.dtype)  # [B, L, C H]
        return self.activation(self.drop(y))

    def _channels(self, y: Tensor) -> Tensor:
        """``[B, C, H, ...]`` to ``[B, C H, ...]``."""
        return (y.transpose(1, 2) if self.swap_channels else y).flatten(1, 2)

    def _step(self, x: Tensor, state: SSMState) -> Tensor:
        u = at_least_fp32(x[:, 0])
        y, state.ssm = state.recurrence.step(state.ssm, u)  # [B, C, H]
        y = y if self.D is None else y + u[:, None] * self.D
        return self.activation(self._channels(y).to(x.dtype))[:, None]

    def allocate_state(
        self, batch_size: int, mode: str | None = None, rate: float = 1.0
    ) -> SSMState:
        """The state before the first step, for the weights as they are now.

        Args:
            batch_size: number of sequences.
            mode: of the kernel's ``recurrence``; None for its own.
            rate: as in :meth:`forward`.

        Raises:
            ZooError: if the convolution looks ahead.
        """
        if self.bidirectional:
            raise ZooError("a convolution in both directions has no state: it sees the end")
        recurrence = self.kernel.recurrence(mode, rate)
        return SSMState(recurrence.initial_state(batch_size), recurrence)


class S4Block(nn.Module):
    r"""S4's layer (arXiv 2111.00396, section 3.4): convolution, activation, a position-wise layer.

    Args:
        d_model: width of the tokens.
        bottleneck: the convolution runs over ``d_model / bottleneck`` features (GSS).
        gate: a second branch multiplies the output, ``gate`` times as wide (GSS).
        gate_act: activation of that branch.
        mult_act: activation after the product.
        final_act: activation of the last linear layer; None for no such layer, "id" for none.
        dropout, tie_dropout: after the convolution and before the last layer.
        transposed: tokens are ``[B, d_model, L]``.
        layer_args: of :class:`SSMConv`.
    """

    def __init__(
        self,
        d_model: int,
        bottleneck: int | None = None,
        gate: int | None = None,
        gate_act: str | None = None,
        mult_act: str | None = None,
        final_act: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = True,
        **layer_args: Any,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        inner = d_model // (bottleneck or 1)
        if bottleneck is not None:
            self.input_linear = nn.Linear(d_model, inner)
        self.layer = SSMConv(inner, dropout=dropout, tie_dropout=tie_dropout, **layer_args)
        width = self.layer.d_output
        self.gated = gate is not None
        if gate is not None:
            self.input_gate = linear_with(d_model, inner * gate, gate_act)
            self.output_gate: nn.Module = nn.Identity()
            if width != inner * gate:
                self.output_gate = nn.Linear(width, inner * gate)
            width = inner * gate
        self.mult_activation = activation_of(mult_act)
        self.drop = dropout_of(dropout, tie_dropout)
        if final_act is None:
            if width != d_model:
                raise ZooError(
                    f"final_act: null leaves {width} outputs for a width of {d_model}: expected a "
                    "last layer, such as final_act: id"
                )
            self.output_linear: nn.Module = nn.Identity()
        else:
            self.output_linear = linear_with(width, d_model, final_act)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: SSMState | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """Tokens to tokens of the same shape.

        Args:
            x: ``[B, L, d_model]``, or ``[B, d_model, L]`` if transposed.
            lengths: of the sequences ``[B]``; what follows is padding and is read as zero.
            state: see :meth:`SSMConv.forward`.
            rate: see :meth:`SSMConv.forward`.
        """
        if self.transposed:
            x = x.transpose(1, 2)
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = x * inside[..., None]
        y = self.input_linear(x) if hasattr(self, "input_linear") else x
        y = self.layer(y, state, rate)
        if self.gated:
            y = self.output_gate(y) * self.input_gate(x)
        y = self.output_linear(self.drop(self.mult_activation(y)))
        return y.transpose(1, 2) if self.transposed else y

    def allocate_state(
        self, batch_size: int, mode: str | None = None, rate: float = 1.0
    ) -> SSMState:
        """See :meth:`SSMConv.allocate_state`."""
        return self.layer.allocate_state(batch_size, mode, rate)
