"""The survey's layer for pictures and videos: S4ND."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.devices import without_autocast
from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_kernel import DiagonalKernel


class S4ND(nn.Module):
    r"""A convolution over several axes with the outer product of one S4 kernel each
    (arXiv 2210.06583, section 3).

    .. math::
        K_{t_1 \dots t_D} = \sum_{r=1}^{R} \prod_d k^{(r, d)}_{t_d}, \qquad y = K * u + D u

    Kernels of an axis look both ways, unless ``bidirectional`` is false. Trained with a
    ``bandlimit``, at ``rate`` < 1 it takes maps of a higher resolution.

    Args:
        d_model: H.
        dims: number of axes.
        d_state: N of each kernel.
        rank: R, of the joint kernel.
        bidirectional: whether a place is reached from both sides.
        kernel_args: of :class:`zoo.layers.ssm_kernel.DiagonalKernel`, ``bandlimit`` among them.

    Raises:
        ZooError: if there is no axis, or no rank.
    """

    kind: ClassVar[str] = "lti"

    def __init__(
        self,
        d_model: int,
        dims: int = 2,
        d_state: int = 64,
        rank: int = 1,
        bidirectional: bool = True,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        if dims < 1 or rank < 1:
            raise ZooError(f"S4ND: expected dims and rank of at least 1, got {dims} and {rank}")
        self.rank, self.bidirectional = rank, bidirectional
        channels = rank * (2 if bidirectional else 1)
        self.kernels = nn.ModuleList(
            DiagonalKernel(d_model, channels, d_state=d_state, **kernel_args) for _ in range(dims)
        )
        self.D = nn.Parameter(torch.randn(d_model))

    def forward(self, x: Tensor, rate: float | Sequence[float] = 1.0) -> Tensor:
        """``[B, S1, ..., SD, H]`` to the same.

        Args:
            x: maps.
            rate: of each axis or of all: sampling is so many times slower than in training.

        Raises:
            ZooError: if the number of axes is another.
        """
        dims = len(self.kernels)
        if x.dim() != dims + 2:
            raise ZooError(
                f"S4ND of {dims} axes takes [B, {dims} sizes, H], got {x.dim()} dimensions"
            )
        rates = [rate] * dims if isinstance(rate, (int, float)) else list(rate)
        with without_autocast(x):
            u = at_least_fp32(x).movedim(-1, 1)  # [B, H, S1, ..., SD]
            axes = tuple(range(2, dims + 2))
            sizes = [2 * size for size in u.shape[2:]]
            spectrum = torch.ones((), dtype=u.dtype, device=u.device)
            for axis, (kernel, factor) in enumerate(zip(self.kernels, rates, strict=True)):
                k = self._two_sided(kernel(u.shape[axis + 2], factor)[0])  # [R, H, 2 S]
                last = axis == dims - 1
                k = torch.fft.rfft(k) if last else torch.fft.fft(k)
                spectrum = spectrum * k.view(
                    *k.shape[:2], *(1,) * axis, -1, *(1,) * (dims - axis - 1)
                )
            y = torch.fft.irfftn(torch.fft.rfftn(u, sizes, axes) * spectrum.sum(0), sizes, axes)
            for axis in axes:
                y = y.narrow(axis, 0, u.shape[axis])
            y = y + at_least_fp32(self.D).view(-1, *(1,) * dims) * u
            return y.movedim(1, -1).to(x.dtype)

    def _two_sided(self, k: Tensor) -> Tensor:
        size = k.shape[-1]
        if not self.bidirectional:
            return F.pad(k, (0, size))
        behind, ahead = k.chunk(2)  # the second from the next place on
        return F.pad(behind, (0, size)) + F.pad(ahead.flip(-1), (size, 0))
