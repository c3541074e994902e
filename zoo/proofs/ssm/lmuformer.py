"""LMUFormer: what its memory recalls, and words that it hears step by step."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.signal import butter, lfilter
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo.data.synthetic.chirp_frames import chirp_frames
from zoo.data.synthetic.chirped_words import WORDS
from zoo.models.ssm._lmuformer_steps import LIF, Pass
from zoo.models.ssm.lmuformer import LMUFormer, SLMUMs
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

STEPS, MEMORY, THETA = 6000, 64, 128
RECALL = Axes("What can be read out of the memory", "delay, steps", "R2")
EARLY = Axes("Made words, step by step", "steps heard", "accuracy")
DELAYS = tuple(range(0, THETA + 1, 16))


class Recall(Measurement):
    """Reads the input at several delays out of a Legendre memory, by the polynomials alone.

    Measures the share of the variance that is explained now (``r2_start``), at half of the window
    and at its end; and ``gap``, the difference between running it step by step and at once, of the
    largest value.
    """

    def measure(self, seed: int) -> Measured:
        """Drive it with slow noise."""
        u = slow_noise(seed)
        memory = zoo.create_model("lmuformer", embed_dims=MEMORY, theta=THETA).block[0].attn.lmu  # type: ignore[union-attr,operator]
        with torch.no_grad():
            m = memory.memory(u[None, None])[0]
            stepped = memory.memory(u[None, None], Pass(streaming=True))[0]
        shares = torch.tensor(DELAYS) / THETA
        polynomials = np.polynomial.legendre.legvander(2 * shares.numpy() - 1, MEMORY - 1)
        read = torch.from_numpy(polynomials).float() @ m  # [delays, steps]
        gap = (m - stepped).abs().max() / m.abs().max()
        return _recalled(u, read, slice(2 * THETA, None), {"gap": float(gap)})


class RandomRecall(Measurement):
    """The same of a random memory of the same size, with a linear readout fitted on the first half.

    Args:
        radius: of its spectrum.
    """

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def measure(self, seed: int) -> Measured:
        """Drive it with slow noise, fit by ridge regression, read the second half."""
        u = slow_noise(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        A = torch.randn(MEMORY, MEMORY, generator=generator, dtype=torch.float64)
        A = A * self.radius / torch.linalg.eigvals(A).abs().max()
        b = torch.randn(MEMORY, generator=generator, dtype=torch.float64)
        states, m = [], torch.zeros(MEMORY, dtype=torch.float64)
        for now in u.double():
            m = A @ m + b * now
            states.append(m)
        x = torch.stack(states)  # [steps, q]
        wanted = torch.stack([u.double().roll(delay) for delay in DELAYS], 1)
        fit = slice(THETA, STEPS // 2)
        gram = x[fit].T @ x[fit]
        ridge = 1e-6 * gram.trace() / MEMORY * torch.eye(MEMORY, dtype=torch.float64)
        weights = torch.linalg.solve(gram + ridge, x[fit].T @ wanted[fit])
        return _recalled(u, (x @ weights).T.float(), slice(STEPS // 2, None), {})


def slow_noise(seed: int) -> Tensor:
    """White noise through a second-order low-pass at 0.08 of the highest frequency [steps]."""
    noise = np.random.default_rng(seed).normal(size=STEPS)
    return torch.from_numpy(lfilter(*butter(2, 0.08), noise)).float()


def _recalled(u: Tensor, read: Tensor, where: slice, values: dict[str, float]) -> Measured:
    r2 = []
    for delay, got in zip(DELAYS, read, strict=True):
        wanted = u.roll(delay)[where]
        r2.append(1 - float((got[where] - wanted).square().mean() / wanted.var()))
    values = {"r2_start": r2[0], "r2_half": r2[len(r2) // 2], "r2_end": r2[-1]} | values
    return Measured(values, [Curve(RECALL, DELAYS, [max(value, 0.0) for value in r2])])


class Words(Measurement):
    """Trains on made words, 32 frames of 16 bands, and listens step by step.

    Measures ``accuracy`` of whole words, ``accuracy_early`` after three quarters of the steps, by
    when every word has ended, and of networks that stream ``stream_gap``, the largest difference
    between the last step's logits and those of the whole, of the largest; of spiking ones
    ``not_spikes``, how many outputs of neurons are neither 0 nor 1.

    Args:
        form: of :class:`LMUFormer`; ``bare`` is the memory with a linear head.
        steps: of training.
        test_samples: words that are measured.
    """

    def __init__(
        self,
        form: Literal["lmu", "slmu_ms", "bare"],
        steps: int = 360,
        batch_size: int = 50,
        train_samples: int = 1200,
        test_samples: int = 400,
    ) -> None:
        self.form, self.steps, self.batch_size = form, steps, batch_size
        self.train_samples, self.test_samples = train_samples, test_samples

    def measure(self, seed: int) -> Measured:
        """Train, then listen."""
        torch.manual_seed(seed)
        draws = np.random.default_rng(seed)
        x, y = chirp_frames(draws, self.train_samples)
        model: nn.Module = _Bare() if self.form == "bare" else self._network()
        optimizer = torch.optim.Adam(model.parameters(), lr=2.5e-3)
        for _ in range(self.steps):
            chosen = torch.randint(len(x), (self.batch_size,))
            target = F.one_hot(y[chosen], len(WORDS)).float()
            loss = F.binary_cross_entropy_with_logits(model(x[chosen]), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self._listen(model.eval(), *chirp_frames(draws, self.test_samples))

    def _network(self) -> LMUFormer:
        form: Literal["lmu", "slmu_ms"] = "lmu" if self.form == "lmu" else "slmu_ms"
        return LMUFormer(len(WORDS), 16, 32, num_heads=4, form=form, theta=32)

    @torch.no_grad()
    def _listen(self, model: nn.Module, x: Tensor, y: Tensor) -> Measured:
        whole = model(x)
        values = {"accuracy": float((whole.argmax(1) == y).float().mean())}
        if not isinstance(model, LMUFormer):
            return Measured(values)
        odd = [0]

        def count(neurons: nn.Module, _: object, out: Tensor) -> None:
            odd[0] += int(((out != 0) & (out != 1)).sum())

        for module in model.modules():
            if isinstance(module, LIF):
                module.register_forward_hook(count)
        stream, pieces = model.stream(), x.split(1, dim=1)
        heard = torch.cat([stream.feed(piece, piece is pieces[-1]) for piece in pieces], 1)
        right = (heard.argmax(-1) == y[:, None]).float().mean(0)  # [steps]
        values |= {
            "accuracy_early": float(right[len(right) * 3 // 4 - 1]),
            "stream_gap": float((heard[:, -1] - whole).abs().max() / whole.abs().max()),
        }
        if isinstance(model.block[0].attn, SLMUMs):  # type: ignore[union-attr]
            values["not_spikes"] = odd[0]
        steps = range(1, len(right) + 1)
        return Measured(values, [Curve(EARLY, steps, right.tolist())])


class _Bare(nn.Module):
    """The memory alone: its cell, and a linear head at each step."""

    def __init__(self) -> None:
        super().__init__()
        whole = LMUFormer(len(WORDS), 16, 16, num_heads=4, theta=32)
        self.cell = whole.block[0].attn.lmu  # type: ignore[union-attr]
        self.head = nn.Linear(16, len(WORDS))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, 16] -> logits [B, K], the mean over the steps."""
        h = self.cell(x.transpose(1, 2), Pass())  # type: ignore[operator]
        return self.head(h.transpose(1, 2)).mean(1)
