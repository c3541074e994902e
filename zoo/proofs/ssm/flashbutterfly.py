"""FlashButterfly: what the squash finds in noise, and that its transforms are Fourier's."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.models.ssm._flashbutterfly_kernels import BlockFFT, LongConvKernel
from zoo.ops import butterfly_conv, butterfly_fft, fft_conv
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement


class Identification(Measurement):
    """A long kernel is learned from noisy answers to white noise, and compared on clean ones.

    The true kernel decays and oscillates: ``0.1 exp(-t / 15) cos(t / 6)``.

    Args:
        lam: of the squash.
        sequences: that are answered.
        length: of sequences and kernel.
        steps, lr: of Adam, over all sequences at once.
        test_samples: clean sequences that are compared.
    """

    def __init__(
        self,
        lam: float,
        sequences: int = 4,
        length: int = 512,
        steps: int = 2000,
        lr: float = 3e-4,
        test_samples: int = 64,
    ) -> None:
        self.lam, self.sequences, self.length = lam, sequences, length
        self.steps, self.lr, self.test_samples = steps, lr, test_samples

    def measure(self, seed: int) -> Measured:
        """``error``: mean square of the difference, relative to that of the answers; ``taps`` that
        are not zero; draws the kernels."""
        torch.manual_seed(seed)
        t = torch.arange(self.length)
        true = (0.1 * torch.exp(-t / 15) * torch.cos(t / 6))[None]
        x = torch.randn(self.sequences, 1, self.length)
        answers = fft_conv(x, true)
        answers = answers + answers.std() * torch.randn_like(answers)
        kernel = LongConvKernel(1, self.length, lam=self.lam)
        with torch.no_grad():
            start = 0.02 * torch.randn(self.length) * torch.exp(-16 * t / self.length)
            kernel.kernel.copy_(start[None, None])
        optimizer = torch.optim.Adam(kernel.parameters(), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            (fft_conv(x, kernel()[0]) - answers).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            learned = kernel()[0]
            clean = torch.randn(self.test_samples, 1, self.length)
            right = fft_conv(clean, true)
            error = (fft_conv(clean, learned) - right).square().mean() / right.square().mean()
        shown = range(min(self.length, 150))
        axes = Axes("Kernel", "lag in steps", "weight")
        curves = [
            Curve(axes, shown, learned[0, : len(shown)].tolist()),
            Curve(axes, shown, true[0, : len(shown)].tolist(), "true", "known"),
        ]
        values = {"error": error.item(), "taps": float(learned.count_nonzero())}
        return Measured(values, curves)


class Exactness(Measurement):
    """Relative differences of the butterfly forms from the library's transforms, in float32."""

    @staticmethod
    def _deviation(a: Tensor, b: Tensor) -> float:
        return ((a - b).abs().max() / b.abs().max()).item()

    def measure(self, seed: int) -> Measured:
        """``square``, ``oblong``, ``large``: convolutions of order 2 (32 x 32, 64 x 128, 256 x 256)
        against one by the library, which are drawn; ``radix``: of order 4 in factors of 16;
        ``passes``: three passes against one transform of the whole; ``learned``: learned factors
        where they start; ``gradient``: the smallest among the largest gradients of each."""
        torch.manual_seed(seed)
        cases = {"square": (32, 32), "oblong": (64, 128), "large": (256, 256),
                 "radix": (16, 16, 16, 4)}  # fmt: skip
        values = {}
        for name, sizes in cases.items():
            n = torch.Size(sizes).numel() // 2
            u, k = torch.randn(1, 2, n), torch.randn(2, n) / n**0.5
            values[name] = self._deviation(butterfly_conv(u, k, sizes), fft_conv(u, k))
        u, k = torch.randn(1, 2, 512), torch.randn(2, 512)
        spectrum = butterfly_fft(torch.nn.functional.pad(u, (0, 512)), (32, 32))
        spectrum = spectrum * butterfly_fft(torch.nn.functional.pad(k, (0, 512)), (32, 32))
        one_pass = torch.fft.ifft(spectrum).real[..., :512]
        values["passes"] = self._deviation(butterfly_conv(u, k, (32, 32)), one_pass)
        fft = BlockFFT()
        found, right = fft(u, 1024), torch.fft.fft(u, n=1024)
        values["learned"] = self._deviation(found.detach().real, right.real)
        found.abs().square().mean().backward()
        used = [p.grad.abs().max().item() for p in fft.parameters() if p.grad is not None]
        values["gradient"] = min(used)
        two = ("square", "oblong", "large")
        axes = Axes("Two products with small matrices", "points of the transform",
                    "difference from the library's", "xy")  # fmt: skip
        points = [torch.Size(cases[name]).numel() for name in two]
        return Measured(values, [Curve(axes, points, [values[name] for name in two], "butterfly")])
