"""Stuffed Mamba: does a model trained on short texts break on long ones, and what mends it?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.language.passkey import Passkey
from zoo.layers.mamba2 import Mamba2
from zoo.models.language._causal_lm import load_causal_lm, load_tokenizer
from zoo.models.language.mamba import MambaLM
from zoo.models.recurrent.stuffed_mamba import (
    MitigatedMamba2,
    mitigated,
    position_losses,
    retrieved,
    state_norms,
)
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

#: Symbols, and concentration of the rows of a transition table.
ALPHABET, CONCENTRATION = 16, 0.3
#: Tokens of an evaluated stream, streams, and where the loss is taken at its start and end.
LENGTH, STREAMS = 2048, 16
START, END = slice(32, 64), slice(1792, 2047)
POWERS = (1.5, 2.0, 4.0)


def chains(count: int, length: int, switching: bool) -> Tensor:
    """Markov chains ``[count, length]``, each of a table of its own, which is drawn again after 96
    to 160 tokens if they are switching."""
    rows = torch.distributions.Dirichlet(torch.full((ALPHABET,), CONCENTRATION))

    def tables(many: int) -> Tensor:
        return rows.sample((many, ALPHABET)).cumsum(-1)

    table, left = tables(count), torch.randint(96, 161, (count,))
    state, draws = torch.randint(ALPHABET, (count,)), torch.rand(length, count, 1)
    every, found = torch.arange(count), []
    for draw in draws:
        found.append(state)
        left -= 1
        if switching and bool((over := left == 0).any()):
            table[over] = tables(int(over.sum()))
            left[over] = torch.randint(96, 161, (int(over.sum()),))
        state = (table[every, state] < draw).sum(-1).clamp_max(ALPHABET - 1)
    return torch.stack(found, 1)


def train(d_state: int, length: int, steps: int, batch: int, switching: bool) -> MambaLM:
    """Two layers of width 64 that predict chains."""
    model = MambaLM(
        d_model=64, n_layer=2, vocab_size=ALPHABET,
        ssm_cfg={"layer": "Mamba2", "headdim": 32, "d_state": d_state, "chunk_size": 64},
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        ids = chains(batch, length, switching)
        logits = model(ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


class Collapse(Measurement):
    """A small Mamba-2 learns chains in context and reads streams whose chain changes.

    Measures mean losses (nats): ``start`` on positions 32 to 64, ``plain`` on the last 256 of
    2,048, their difference ``gap``; and if asked, the last again ``window`` with the window of the
    training length, ``norm`` with norms clipped at their 99th percentile within that length,
    ``forget`` with the best of three powers of the decay.

    Args:
        d_state: N.
        length: of training sequences.
        steps, batch: of the training.
        switching: train on streams whose chain changes.
        mitigate: measure the mitigations too.
    """

    def __init__(
        self,
        d_state: int = 64,
        length: int = 64,
        steps: int = 500,
        batch: int = 32,
        switching: bool = False,
        mitigate: bool = False,
    ) -> None:
        self.d_state, self.length, self.steps, self.batch = d_state, length, steps, batch
        self.switching, self.mitigate = switching, mitigate

    def measure(self, seed: int) -> Measured:
        """Train and read."""
        torch.manual_seed(seed)
        model = train(self.d_state, self.length, self.steps, self.batch, self.switching)
        streams = chains(STREAMS, LENGTH, switching=True)
        plain = position_losses(model, streams).mean(0)
        start, end = float(plain[START].mean()), float(plain[END].mean())
        values = {"start": start, "plain": end, "gap": end - start}
        curves = [_curve(plain, None)]
        if self.mitigate:
            norms = state_norms(model, chains(64, self.length, self.switching), every=4)
            limits = norms.movedim(2, 1).flatten(2).quantile(0.99, dim=-1)  # [layers, H]
            forms = {
                "window": mitigated(model, window=self.length),
                "norm": mitigated(model, max_norm=limits),
            }
            forms |= {f"forget {m:g}": mitigated(model, a_mult=m) for m in POWERS}
            found = {name: position_losses(form, streams).mean(0) for name, form in forms.items()}
            best = min((f"forget {m:g}" for m in POWERS), key=lambda n: float(found[n][END].mean()))
            kept = {"window": found["window"], "norm": found["norm"], "forget": found[best]}
            values |= {name: float(losses[END].mean()) for name, losses in kept.items()}
            curves += [_curve(losses, name) for name, losses in kept.items()]
        return Measured(values, curves)


def _curve(losses: Tensor, line: str | None) -> Curve:
    means = losses[: len(losses) // 64 * 64].unflatten(0, (-1, 64)).mean(1)
    axes = Axes("Loss along a stream", "position", "nats per token")
    return Curve(axes, [64 * i + 32 for i in range(len(means))], means.tolist(), line)


class Window(Measurement):
    """One layer with random weights and a window of 1, 16 and 100 steps over 600 tokens, against
    the difference of two states of the plain layer.

    Measures ``single`` and ``double``, the largest differences of outputs relative to the largest
    output, in float32 and float64; draws them against the window.
    """

    def measure(self, seed: int) -> Measured:
        """With random inputs."""
        torch.manual_seed(seed)
        plain, x = Mamba2(32, d_state=16, headdim=16, chunk_size=64), torch.randn(2, 600, 32)
        values, curves, windows = {}, [], (1, 16, 100)
        axes = Axes("From the difference of two states", "window", "share of the output", "xy")
        for name, dtype in (("single", torch.float32), ("double", torch.float64)):
            apart = [_apart(plain, x, r, dtype) for r in windows]
            values[name] = max(apart)
            curves.append(Curve(axes, windows, apart, str(dtype).removeprefix("torch.")))
        return Measured(values, curves)


@torch.no_grad()
def _apart(plain: Mamba2, x: Tensor, r: int, dtype: torch.dtype) -> float:
    layer = MitigatedMamba2(32, window=r, d_state=16, headdim=16, chunk_size=64)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to(dtype)
    exact = difference_of_states(copy.deepcopy(plain).double(), x.double(), r)
    return float((layer(x.to(dtype)) - exact).abs().max() / exact.abs().max())


def difference_of_states(mixer: Mamba2, x: Tensor, r: int) -> Tensor:
    """The mixer's output [B, L, d_model] with h_t - (alpha_{t-r+1} ... alpha_t) h_{t-r} for its
    states, by definition, one step after the other. One group, and a norm."""
    z, xBC, dt = mixer.in_proj(x).split([mixer.d_ssm, mixer.d_xbc, mixer.nheads], -1)
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    xBC = F.conv1d(F.pad(xBC.mT, (mixer.d_conv - 1, 0)), weight, bias, groups=mixer.d_xbc).mT
    u, B, C = F.silu(xBC).split([mixer.d_ssm, mixer.d_state, mixer.d_state], -1)
    u = u.unflatten(-1, (mixer.nheads, -1))
    dt = F.softplus(dt + mixer.dt_bias)
    logs = -mixer.A_log.exp() * dt
    h = u.new_zeros(x.shape[0], mixer.nheads, mixer.headdim, mixer.d_state)
    states, outputs = [h], []
    for t in range(x.shape[1]):
        added = (dt[:, t, :, None] * u[:, t])[..., None] * B[:, t, None, None]
        h = logs[:, t].exp()[..., None, None] * h + added
        states.append(h)
        if t >= r:  # states[t + 1] is h_t
            decay = logs[:, t - r + 1 : t + 1].sum(1).exp()[..., None, None]
            recent = h - decay * states[t + 1 - r]
        else:
            recent = h
        read = torch.einsum("bhpn,bn->bhp", recent, C[:, t])
        outputs.append(read + mixer.D[:, None] * u[:, t])
    assert mixer.norm is not None
    return mixer.out_proj(mixer.norm(torch.stack(outputs, 1).flatten(2), z))


class Retrieval(Measurement):
    """Passkeys that a trained model finds at each length.

    Measures ``found_<length>``, the share of texts after which greedy decoding writes the number.

    Args:
        model: a folder, an exported model's name, or a hub name, with its tokenizer.
        lengths: tokens of a text.
        samples: texts at each length.
        depths: places of the number.
        a_mult, b_mult, max_norm, window: see :class:`zoo.models.recurrent.stuffed_mamba.mitigated`;
            none by default.
    """

    def __init__(
        self,
        model: str,
        lengths: Sequence[int] = (1024, 2048, 4096, 8192, 16384),
        samples: int = 200,
        depths: int = 10,
        a_mult: float = 1.0,
        b_mult: float = 1.0,
        max_norm: float | None = None,
        window: int | None = None,
    ) -> None:
        self.model, self.lengths, self.samples, self.depths = model, lengths, samples, depths
        self.options = dict(a_mult=a_mult, b_mult=b_mult, max_norm=max_norm, window=window)

    def measure(self, seed: int) -> Measured:
        """Read the texts."""
        model, tokenizer = load_causal_lm(self.model), load_tokenizer(self.model)
        if self.options != dict(a_mult=1.0, b_mult=1.0, max_norm=None, window=None):
            model = mitigated(model, **self.options)  # type: ignore[arg-type]
        shares = []
        for length in self.lengths:
            data = Passkey(depths=self.depths, samples=self.samples, length=length)
            data.tokenizer, data.seed = tokenizer, seed
            texts = data.load("train")
            found = [retrieved(model, *texts[index]) for index in range(len(texts))]
            shares.append(sum(found) / len(found))
        axes = Axes("Passkeys found", "tokens", "share", log="x")
        values = {f"found_{n}": share for n, share in zip(self.lengths, shares, strict=True)}
        return Measured(values, [Curve(axes, self.lengths, shares)])
