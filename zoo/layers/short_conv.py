"""The short depthwise convolution before a scan, over token rows and with a memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.cache import KeyValues, RecurrentState
from zoo.layers.plain import is_plain
from zoo.ops import causal_conv1d, causal_conv1d_update


def make_short_conv(channels: int, width: int, bias: bool = True) -> nn.Conv1d:
    """The parameters of :func:`short_conv`, under the names that all Mamba code gives them."""
    return nn.Conv1d(channels, channels, width, groups=channels, padding=width - 1, bias=bias)


def short_conv(
    x: Tensor,
    conv: nn.Conv1d,
    activation: str | None = "silu",
    *,
    seq_idx: Tensor | None = None,
    state: RecurrentState | KeyValues | None = None,
) -> Tensor:
    """Causal depthwise convolution of ``[B, L, D]`` along L.

    Args:
        x: inputs.
        conv: of :func:`make_short_conv`; its padding plays no role here.
        activation: "silu" or None.
        seq_idx: int32 ``[B, L]``, see :func:`zoo.ops.causal_conv1d`; not together with ``state``.
        state: its ``conv`` holds the inputs before x and takes in those of x.
    """
    rows = x.transpose(1, 2)  # [B, D, L]
    if not is_plain(conv):
        if state is not None:
            tail = state.conv.to(x.dtype)  # type: ignore[union-attr]
            rows = torch.cat([tail, rows], dim=2)
            state.conv = rows[:, :, -tail.shape[2] :]
        y = _called(rows, conv, seq_idx)[..., -x.shape[1] :]
        return (F.silu(y) if activation == "silu" else y).transpose(1, 2)
    weight = conv.weight.squeeze(1)
    if state is None:
        y = causal_conv1d(  # type: ignore[assignment]
            rows, weight, conv.bias, seq_idx, activation=activation
        )
        return y.transpose(1, 2)
    tail = state.conv.to(x.dtype)  # type: ignore[union-attr]
    if x.shape[1] == 1 and not torch.is_grad_enabled():
        state.conv = tail  # overwritten in place
        return causal_conv1d_update(x[:, 0], tail, weight, conv.bias, activation)[:, None]
    state.conv = torch.cat([tail, rows], dim=2)[:, :, -tail.shape[2] :]
    y = causal_conv1d(  # type: ignore[assignment]
        rows, weight, conv.bias, initial_states=tail[:, :, 1:], activation=activation
    )
    return y.transpose(1, 2)


def _called(rows: Tensor, conv: nn.Module, seq_idx: Tensor | None) -> Tensor:
    """``conv`` of [B, D, L] by calling it, which pads both ends; no sequence sees another."""
    length = rows.shape[-1]
    if seq_idx is None:
        return conv(rows)[..., :length]
    y = torch.zeros_like(rows)
    for sequence in seq_idx[seq_idx >= 0].unique():
        inside = (seq_idx == sequence)[:, None]
        y = torch.where(inside, conv(rows * inside)[..., :length], y)
    return y
