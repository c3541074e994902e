"""Convolutional LSTM (Shi et al. 2015), as networks of video use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras' piecewise sigmoid, clip(0.2 x + 0.5, 0, 1); PyTorch's own has the slope 1/6."""
    return (0.2 * x + 0.5).clamp(0, 1)


class ConvLSTM(nn.Module):
    """One step of a convolutional LSTM whose input already holds the hidden state.

    ``forward``: input [B, in_chans, H, W], cell [B, hidden, H, W] -> hidden state and cell, both
    [B, hidden, H, W]. Weights start as in Keras: Glorot uniform, no bias.

    Args:
        in_chans: channels of the input, with those of the hidden state.
        hidden: channels of the state.
        gate: activation of the three gates.
    """

    def __init__(
        self, in_chans: int, hidden: int, gate: Callable[[Tensor], Tensor] = hard_sigmoid
    ) -> None:
        super().__init__()
        self.gate = gate
        self.i, self.f, self.o, self.g = (conv3x3(in_chans, hidden) for _ in range(4))

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Input and cell -> hidden state and cell."""
        gates = (self.i, self.f, self.o, self.g)
        # four convolutions of one input are faster as one
        weight = torch.cat([conv.weight for conv in gates])
        bias = torch.cat([conv.bias for conv in gates])
        i, f, o, g = conv2d(x, weight, bias, padding=1).chunk(4, 1)
        cell = self.gate(f) * cell + self.gate(i) * g.tanh()
        return self.gate(o) * cell.tanh(), cell


def conv3x3(in_chans: int, out_chans: int) -> nn.Conv2d:
    """Convolution 3x3 that keeps the size, initialised as in Keras."""
    conv = nn.Conv2d(in_chans, out_chans, 3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
