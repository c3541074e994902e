"""What LMUFormer remembers from step to step: convolutions, neurons, the Legendre memory.

Each runs over a whole sequence, or over the next piece of one (:class:`Pass`), to the same numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.devices import without_autocast


class Pass:
    """How sequences go through the network: whole, or piece by piece.

    Args:
        mask: of whole ones, [B, 1, L], 0 at padding; None: there is none.
        streaming: they come in pieces.

    Attributes:
        last: whether this is the last piece.
        kept: what a part of the network keeps until the next piece.
    """

    def __init__(self, mask: Tensor | None = None, streaming: bool = False) -> None:
        self.mask, self.streaming, self.last = mask, streaming, False
        self.kept: dict[nn.Module, Tensor] = {}

    def hide(self, x: Tensor) -> Tensor:
        """Zero the padding of [B, C, L]."""
        return x if self.mask is None else x * self.mask


class Conv3(nn.Conv1d):
    """A convolution of a step back, now, and a step ahead, zeros around the sequence."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor, way: Pass | None = None) -> Tensor:  # type: ignore[override]
        """[B, C, L] -> [B, C', L]; a piece's newest step waits for the next one."""
        if way is None or not way.streaming:
            return super().forward(x if way is None else way.hide(x))
        border = x.new_zeros(*x.shape[:2], 1)
        x = torch.cat([way.kept.get(self, border), x] + [border] * way.last, -1)
        way.kept[self] = x[..., -2:]
        if x.shape[-1] < 3:
            return x.new_zeros(len(x), self.out_channels, 0)
        return F.conv1d(x, self.weight)


class Wait(nn.Module):
    """Lets a piece's newest step wait, as a convolution beside it does."""

    def forward(self, x: Tensor, way: Pass | None = None) -> Tensor:
        """[B, C, L] -> the same, a step later."""
        if way is None or not way.streaming:
            return x
        x = torch.cat([way.kept.get(self, x[..., :0]), x], -1)
        ready = x.shape[-1] if way.last else max(x.shape[-1] - 1, 0)
        way.kept[self] = x[..., ready:]
        return x[..., :ready]


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons along the last dimension, which is time.

    v += (x - v) / tau; where v reaches the threshold, a spike 1 and v = 0. The gradient of a spike
    is that of a sigmoid of slope 4; none goes through the reset.
    """

    def __init__(self, tau: float = 2.0, threshold: float = 1.0) -> None:
        super().__init__()
        self.tau, self.threshold = tau, threshold

    def forward(self, x: Tensor, way: Pass | None = None) -> Tensor:
        """[B, C, L] -> spikes, 0 or 1; neurons begin at rest."""
        if x.shape[-1] == 0:
            return x
        rest = torch.zeros_like(x[..., 0])
        v = rest if way is None else way.kept.get(self, rest)
        spikes = []
        for now in x.unbind(-1):
            v = v + (now - v) / self.tau
            over = v - self.threshold
            soft = (4 * over).sigmoid()
            # exactly 0 or 1, with the gradient of soft
            spike = soft + ((over >= 0).to(x.dtype) - soft).detach()
            spikes.append(spike)
            v = v * (1 - spike.detach())
        if way is not None and way.streaming:
            way.kept[self] = v
        return torch.stack(spikes, -1)


class LegendreMemory(nn.Module):
    """m_t = A m_{t-1} + B u_t: the last ``theta`` steps of one input as q Legendre polynomials.

    Args:
        memory_size: q.
        theta: steps that it reaches back.
    """

    A: Tensor
    B: Tensor
    H: Tensor

    def __init__(self, memory_size: int, theta: int) -> None:
        super().__init__()
        for name, matrix in zip("ABH", legendre_memory(memory_size, theta), strict=True):
            self.register_buffer(name, torch.tensor(matrix), persistent=False)

    def forward(self, u: Tensor, way: Pass | None = None) -> Tensor:
        """u [B, 1, L] -> the memory after each step [B, q, L], in float32 at least."""
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        with without_autocast(u):
            return self._pieces(u, way) if way is not None and way.streaming else self._whole(u)

    def _whole(self, u: Tensor) -> Tensor:
        """A convolution with A^t B (equation 26 of arXiv 2102.11417, on parallel LMUs)."""
        length = u.shape[-1]
        spectrum = torch.fft.rfft(self.impulse(length).to(u.dtype), 2 * length)
        m = torch.fft.irfft(torch.fft.rfft(u, 2 * length) * spectrum, 2 * length)
        return m[..., :length]

    def _pieces(self, u: Tensor, way: Pass) -> Tensor:
        A, B = self.A.to(u.dtype), self.B.to(u.dtype)
        m = way.kept.get(self, u.new_zeros(len(u), len(B)))
        found = [u.new_zeros(len(u), len(B), 0)]
        for now in u.unbind(-1):
            m = m @ A.T + now @ B.T
            found.append(m[..., None])
        way.kept[self] = m
        return torch.cat(found, -1)

    def impulse(self, length: int) -> Tensor:
        """A^t B for t < length [q, length]: kept for theta steps, the others by doubling."""
        H = self.H
        if length > H.shape[1]:
            H, power = H.double(), torch.linalg.matrix_power(self.A.double(), H.shape[1])
            while H.shape[1] < length:
                H, power = torch.cat([H, power @ H], 1), power @ power
        return H[:, :length]


@cache
def legendre_memory(memory_size: int, theta: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the memory by zero-order hold, in float32.

    Returns:
        A [q, q], B [q, 1], and the impulse response A^t B for t < theta [q, theta].
    """
    i = np.arange(memory_size, dtype=np.float64)[:, None]
    rate = (2 * i + 1) / theta
    A = rate * np.where(i < i.T, -1.0, (-1.0) ** (i - i.T + 1))
    B = rate * (-1.0) ** i
    # exp of [[A, B], [0, 0]] holds both (Van Loan 1978)
    whole = expm(np.block([[A, B], [np.zeros((1, memory_size + 1))]]))
    A, B = whole[:-1, :-1], whole[:-1, -1:]
    H = [B]
    for _ in range(theta - 1):
        H.append(A @ H[-1])
    return A.astype(np.float32), B.astype(np.float32), np.concatenate(H, 1).astype(np.float32)


class _Network(Protocol):
    """What a stream needs of a model."""

    head: nn.Linear

    def forward_features(self, inputs: Tensor, way: Pass) -> Tensor: ...


class LMUFormerStream:
    """Sequences that come in pieces; logits after each step, of all that came so far.

    A step's answer waits for the steps that the convolutions look ahead: five.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: _Network) -> None:
        self.model, self._way = model, Pass(streaming=True)
        self._sum: Tensor | float = 0.0
        self._count = 0

    @torch.no_grad()
    def feed(self, inputs: Tensor, last: bool = False) -> Tensor:
        """Take in [B, l, F]; logits [B, n, K] after each of the n steps that are now complete."""
        self._way.last = last
        x = self.model.forward_features(inputs, self._way)  # [B, C, n]
        steps = torch.arange(1, x.shape[-1] + 1, device=x.device) + self._count
        sums = x.cumsum(-1) + self._sum
        if x.shape[-1]:
            self._sum, self._count = sums[..., -1:], int(steps[-1])
        return self.model.head((sums / steps).transpose(1, 2))
