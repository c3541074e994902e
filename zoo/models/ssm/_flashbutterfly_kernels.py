"""Kernels of long convolutions that are parameters, and Fourier transforms that are learned."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.precision import at_least_fp32
from zoo.ops import butterfly_fft, butterfly_sizes


class LongConvKernel(nn.Module):
    """Kernels that are parameters (section 3.1).

    Args:
        H: features.
        L: taps.
        channels: C kernels for each feature.
        lam: squash: values come nearer to zero by so much, and those within it are zero.
        kernel_dropout: of taps, in training.
        weight_init: "random", or "double_exp" for decays from slow to fast.
        use_ma_smoothing: smooth first, over time, or with ``smooth_freq`` over frequencies.
        ma_window_len: of the smoothing, odd.
        learning_rate: of the authors' configurations; without effect.
    """

    def __init__(
        self,
        H: int,
        L: int,
        channels: int = 1,
        lam: float = 0.1,
        kernel_dropout: float = 0.0,
        weight_init: str = "random",
        use_ma_smoothing: bool = False,
        ma_window_len: int = 7,
        smooth_freq: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("LongConv: weight_init", weight_init, ("random", "double_exp"))
        if use_ma_smoothing and ma_window_len % 2 == 0:
            raise ZooError(f"LongConv: ma_window_len must be odd, got {ma_window_len}")
        self.lam, self.window = lam, ma_window_len if use_ma_smoothing else 0
        self.smooth_freq = smooth_freq
        kernel = torch.randn(channels, H, L)
        if weight_init == "random":
            kernel = 0.002 * kernel
        else:
            rates = (H // 2) ** (torch.arange(H) / H)
            kernel = 0.02 * kernel * torch.exp(-rates[:, None] * torch.arange(L) / L)
        self.kernel = nn.Parameter(kernel)
        self.drop = nn.Dropout(kernel_dropout)

    def forward(self) -> Tensor:
        """[C, H, L]."""
        k = at_least_fp32(self.kernel)
        if self.window and self.smooth_freq:
            bell = torch.arange(self.window, dtype=k.dtype, device=k.device) - self.window // 2
            bell = torch.exp(-0.5 * bell**2).expand(2 * k.shape[1], 1, -1)
            pairs = torch.view_as_real(torch.fft.rfft(k)).movedim(-1, 1).flatten(1, 2)
            pairs = F.conv1d(pairs, bell, padding="same", groups=len(bell)).unflatten(1, (2, -1))
            spectrum = torch.view_as_complex(pairs.movedim(1, -1).contiguous())
            k = torch.fft.irfft(spectrum, n=2 * (spectrum.shape[-1] - 1))
        elif self.window:
            k = F.avg_pool1d(k, self.window, stride=1, padding=self.window // 2)
        return self.drop(F.softshrink(k, self.lam))


class BlockFFT(nn.Module):
    """A Fourier transform by products with small matrices, which are learned (section 4.2).

    Args:
        learn_dft_matrices: else the Fourier matrices.
        H: 1, or as many matrices as there are features.
        max_m: largest matrix, a power of two.
        dropout: of the matrices, in training.
        learn_additive: what is learned is added to the Fourier matrices.
        dft_lr: of the authors' configurations; without effect.
    """

    def __init__(
        self,
        learn_dft_matrices: bool = True,
        H: int = 1,
        max_m: int = 16,
        dropout: float = 0.0,
        learn_additive: bool = False,
        dft_lr: float = 0.001,
    ) -> None:
        super().__init__()
        self.learned, self.max_m = learn_dft_matrices, max_m
        self.additive, self.drop = learn_additive, nn.Dropout(dropout)
        butterfly_sizes(max_m)  # refuses what is no power of two
        n = 2
        while learn_dft_matrices and n <= max_m:
            mean = (
                0.01 * torch.randn(H, n, n, 2) if learn_additive else _fourier(n).repeat(H, 1, 1, 1)
            )
            self.register_parameter(f"mat_{n}", nn.Parameter(mean))
            n *= 2

    def forward(self, x: Tensor, n: int) -> Tensor:
        """[..., H, L] to its transform of length n, a power of two: complex [..., H, n]."""
        sizes = butterfly_sizes(n, self.max_m)
        matrices = [self._matrix(size) for size in sizes] if self.learned else None
        return butterfly_fft(F.pad(x, (0, n - x.shape[-1])), sizes, matrices)

    def _matrix(self, n: int) -> Tensor:
        matrix = self.drop(at_least_fp32(getattr(self, f"mat_{n}")))
        if self.additive:
            matrix = matrix + _fourier(n).to(matrix)
        return torch.view_as_complex(matrix.contiguous())


def _fourier(n: int) -> Tensor:
    angle = -2 * math.pi / n * (torch.arange(n)[:, None] * torch.arange(n) % n)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)
