"""SaShiMi: stability of its recurrence, and bits a sample of made notes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.formats.quantised_sound import quantise, zero_level
from zoo.data.formats.sound import RATE
from zoo.data.synthetic.plucked_tones import plucked_tone
from zoo.models.ssm.sashimi import SashimiLM
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

DRAWS, STATES = 500, 32
#: Of HiPPO's matrix, as in S4.
HIPPO_STATES = 64
REAL_PARTS = Axes("Rightmost eigenvalue near HiPPO's matrix", "share of the draws", "real part")
TIMES = Axes("Time for one more sample", "sound before it, s", "seconds", log="xy")
LEARNING = Axes("Bits of unheard notes", "updates", "bits a sample")
#: How far parameters are moved from HiPPO's, of their own size.
MOVED = 0.3


class Stability(Measurement):
    """Draws parameters of S4 and looks for eigenvalues in the right half-plane.

    Measures ``unstable``, the share of random draws that have one, and ``unstable_near_hippo``,
    that of HiPPO's own parameters, each times one plus 30 % of noise: real noise for real and
    imaginary parts of the eigenvalues, complex for P and Q.

    Args:
        tied: whether Q is P.
    """

    def __init__(self, tied: bool) -> None:
        self.tied = tied

    def measure(self, seed: int) -> Measured:
        """Eigenvalues of all draws."""
        random = np.random.default_rng(seed)
        real = -np.exp(random.normal(size=(DRAWS, STATES)))
        imaginary = random.normal(size=(DRAWS, STATES)) * STATES
        P, Q = (_complex(random, (DRAWS, STATES)) for _ in range(2))
        anywhere = self._rightmost(real + 1j * imaginary, P, Q)
        w, p = _hippo(HIPPO_STATES)
        noise = 1 + MOVED * random.normal(size=(2, DRAWS, HIPPO_STATES))
        turned = random.normal(size=(2, 2, DRAWS, HIPPO_STATES))
        P, Q = p * (1 + MOVED * (turned[0] + 1j * turned[1]))
        near = self._rightmost(w.real * np.abs(noise[0]) + 1j * w.imag * noise[1], P, Q)
        shares = np.linspace(0, 1, 51)
        values = {
            "unstable": float((anywhere > 0).mean()),
            "unstable_near_hippo": float((near > 0).mean()),
        }
        return Measured(values, [Curve(REAL_PARTS, shares, np.quantile(near, shares).tolist())])

    def _rightmost(self, w: np.ndarray, P: np.ndarray, Q: np.ndarray) -> np.ndarray:
        """Largest real part of each matrix [draws]."""
        other = P if self.tied else Q
        A = np.eye(w.shape[-1]) * w[:, None] - P[:, :, None] * other.conj()[:, None]
        return np.linalg.eigvals(A).real.max(1)


class Speed(Measurement):
    """Times a sample of the paper's network, made by a step and by convolving anew all before it.

    Measures ``seconds_step`` and, at the longest, ``seconds_anew``, the shortest of some.

    Args:
        seconds: of sound before it, at 16 kHz.
        repeats: of each.
    """

    seeded = False

    def __init__(self, seconds: Sequence[float] = (0.064, 0.25, 1.0), repeats: int = 2) -> None:
        self.seconds, self.repeats = seconds, repeats

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Time both, after one of each that does not count."""
        model = SashimiLM(n_ssm=1, final_act="id").eval()
        silence, state = torch.full((1, model.multiple), zero_level()), model.begin(1)
        # so many steps: the slow levels go on once in them
        group = _shortest(lambda: [model.step(s, state) for s in silence.T], 5 * self.repeats)
        step = group / model.multiple
        anew = []
        for seconds in self.seconds:
            tokens = silence.repeat(1, round(seconds * RATE / model.multiple))
            anew.append(_shortest(partial(model, tokens), self.repeats))
        curves = [
            Curve(TIMES, self.seconds, anew, "convolution anew"),
            Curve(TIMES, self.seconds, [step] * len(anew), "step"),
        ]
        return Measured({"seconds_step": step, "seconds_anew": anew[-1]}, curves)


def _shortest(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _complex(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (random.normal(size=shape) + 1j * random.normal(size=shape)) / math.sqrt(2)


def _hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the normal part of HiPPO-LegS, and its low-rank part in their basis."""
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    A = -np.tril(root[:, None] * root[None], -1) - np.diag(n + 1.0)
    p = np.sqrt(n + 0.5)
    skew = A + p[:, None] * p[None] + 0.5 * np.eye(size)
    imaginary, V = np.linalg.eigh(skew * -1j)
    return -0.5 + 1j * imaginary, V.conj().T @ p


class Bits(Measurement):
    """Trains on made notes of any pitch between 220 and 880 Hz and measures unheard ones.

    Measures ``bits`` a sample and ``parameters``.

    Args:
        kind: SaShiMi, a stack of gated dilated convolutions (WaveNet's), or S4 at one rate.
        steps: updates.
        batch_size: notes of each.
        length: samples of a note.
    """

    def __init__(
        self,
        kind: Literal["sashimi", "convolution", "flat"],
        steps: int = 200,
        batch_size: int = 8,
        length: int = 2048,
    ) -> None:
        self.kind, self.steps, self.batch_size, self.length = kind, steps, batch_size, length

    def measure(self, seed: int) -> Measured:
        """Train, then measure."""
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        model = self._model()
        test = self._notes(np.random.default_rng(10_000 + seed), 16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        x, y = [], []
        for step in range(self.steps):
            loss = bits_of(model, self._notes(random, self.batch_size))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 25 == 24 or step == self.steps - 1:
                x.append(step + 1)
                with torch.no_grad():
                    y.append(float(bits_of(model, test)))
        count = sum(p.numel() for p in model.parameters())
        return Measured({"bits": y[-1], "parameters": count}, [Curve(LEARNING, x, y)])

    def _model(self) -> nn.Module:
        if self.kind == "convolution":
            return DilatedConvolutions(40, 7)
        pool = (4, 4) if self.kind == "sashimi" else ()
        return SashimiLM(d_model=16, n_layers=2, pool=pool, n_ssm=1)

    def _notes(self, random: np.random.Generator, count: int) -> Tensor:
        notes = [plucked_tone(random, self.length, RATE, (220.0, 880.0)) for _ in range(count)]
        return torch.stack([quantise(torch.from_numpy(note)) for note in notes])


def bits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean bits a sample [B, L], from all before it."""
    before = F.pad(tokens[:, :-1], (1, 0), value=zero_level())
    return F.cross_entropy(model(before).flatten(0, 1), tokens.flatten()) / math.log(2)


class DilatedConvolutions(nn.Module):
    """Gated causal convolutions of width 2 whose dilation doubles, with residuals and skips.

    Args:
        width: channels.
        layers: seven see 128 samples back, and the first layer of width 2 as many again.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(256, width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers + 1)
        )
        self.mixers = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in self.layers)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 256, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L] -> logits [B, L, 256]."""
        x = self.encoder(tokens).transpose(1, 2)
        skips = torch.zeros_like(x)
        for conv, mixer in zip(self.layers, self.mixers, strict=True):
            value, gate = conv(F.pad(x, (conv.dilation[0], 0))).chunk(2, 1)  # type: ignore[index,operator]
            more, skip = mixer(value.tanh() * gate.sigmoid()).chunk(2, 1)
            x, skips = x + more, skips + skip
        return self.decoder(skips).transpose(1, 2)
