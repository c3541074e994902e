"""Layers of the survey whose inputs gate or bend them: GSS, Liquid-S4 and Hyena.

All map ``[B, L, H]`` to the same; GSS and Liquid-S4 go on with a state of ``allocate_state``, while
Hyena's filters are as long as its longest input and make no steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.devices import without_autocast
from zoo.errors import ZooError, check_choice
from zoo.layers.cache import TensorState
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_kernel import DiagonalKernel
from zoo.ops import causal_conv1d, diagonal_scan, fft_conv, vandermonde_kernel


class SharedDSS(nn.Module):
    r"""GSS's diagonal state space: one spectrum for all features, steps of size 1.

    .. math::
        K_{hl} = \mathrm{Re} \sum_n C_{hn} \frac{e^{A_n} - 1}{A_n} e^{A_n l}, \quad
        A = -e^{a} + i e^{b}

    Args:
        dim: E, features.
        d_state: N, complex.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.Lambda_real = nn.Parameter(torch.randn(d_state))
        self.Lambda_imag = nn.Parameter(torch.randn(d_state))
        self.C_real = nn.Parameter(torch.randn(dim, d_state))
        self.C_imag = nn.Parameter(torch.randn(dim, d_state))
        self.param_D = nn.Parameter(torch.randn(dim))

    def modes(self) -> tuple[Tensor, Tensor]:
        """A ``[N]``, and the coefficients ``[E, N]``."""
        real, imag = (at_least_fp32(p).exp() for p in (self.Lambda_real, self.Lambda_imag))
        A = torch.complex(-real, imag)
        C = torch.complex(at_least_fp32(self.C_real), at_least_fp32(self.C_imag))
        return A, C * (2 * (A / 2).exp() * (A / 2).sinh() / A)  # exp(A) - 1, exact where A is small

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, E]`` to the same; ``state`` goes on and is replaced."""
        u = self.norm(x)
        with without_autocast(x):
            wide = at_least_fp32(u).transpose(1, 2)  # [B, E, L]
            A, C = self.modes()
            if state is None:
                K = vandermonde_kernel(C[:, None] / 2, A[None], x.shape[1])[:, 0]
                y = fft_conv(wide, K, at_least_fp32(self.param_D)).transpose(1, 2)
                return y.to(x.dtype)
            b = wide.transpose(1, 2).repeat_interleave(len(A), -1).to(A.dtype)  # [B, L, E N]
            h, last = diagonal_scan(
                A.exp().repeat(len(C)), b, initial_state=state.parts[0], return_last_state=True
            )
            state.parts = (last,)
            y = torch.einsum("bten,en->bte", h.unflatten(-1, C.shape), C).real
            return (y + at_least_fp32(self.param_D) * wide.transpose(1, 2)).to(x.dtype)


class GSS(nn.Module):
    """The gated state space layer (arXiv 2206.13947, pseudocode 3.2), its residual included.

    Args:
        d_model: H.
        d_state: N of its state space.
        expand: the gate is so many times as wide as the tokens.
        d_ssm: E, features of the state space; None: a quarter of H.
    """

    def __init__(
        self, d_model: int, d_state: int = 64, expand: float = 4, d_ssm: int | None = None
    ) -> None:
        super().__init__()
        inner = int(expand * d_model)
        d_ssm = max(d_model // 4, 1) if d_ssm is None else d_ssm
        self.norm = nn.LayerNorm(d_model)
        self.to_u = nn.Sequential(nn.Linear(d_model, inner, bias=False), nn.GELU())
        self.to_v = nn.Sequential(nn.Linear(d_model, d_ssm, bias=False), nn.GELU())
        self.dss = SharedDSS(d_ssm, d_state)
        self.to_gate = nn.Linear(d_ssm, inner, bias=False)
        self.to_out = nn.Linear(inner, d_model)

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        n = self.norm(x)
        u, v = self.to_u(n), self.dss(self.to_v(n), state)
        return x + self.to_out(u * self.to_gate(v))

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, E N]``."""
        A, C = self.dss.modes()
        return TensorState(A.new_zeros(batch_size, C.numel()))


#: What Liquid-S4 may bend its products by.
BENDS = {
    "id": lambda x: x,
    "tanh": torch.tanh,
    "scaled_tanh": lambda x: 1.7159 * (0.666 * x).tanh(),
}


class LiquidS4(nn.Module):
    r"""Liquid-S4 on a diagonal state space (arXiv 2209.12951): the input moves the state matrix.

    .. math::
        x_t = (\bar A + \mathrm{diag}(\bar B u_t))\, x_{t-1} + \bar B u_t, \quad
        y_t = 2\,\mathrm{Re}(C x_t) + D u_t

    "exact" is this, by a scan with factors of each step. The paper's two convolutions keep products
    of ``degree`` neighbouring inputs at most: "pb" (its equation 12 without the powers of A),

    .. math::
        y_t = (K * u)_t + \sum_{p=2}^{P} 2\,\mathrm{Re}\big(\textstyle\sum_n C_n \bar B_n^p\big)
              \prod_{i<p} u_{t-i} + D u_t

    and "kb", where the product signals are convolved with K of :math:`\bar B^p` in place of B-bar.

    The formulas are the paper's. The authors' code flips the product signals in time, which sees
    the future, and by default takes products of the last inputs for all steps.

    Args:
        d_model: H.
        d_state: N, even.
        form: "exact", "pb" or "kb".
        degree: P, 2 or more.
        bend: of the products: "id", "tanh" or "scaled_tanh".
        kernel_args: of :class:`zoo.layers.ssm_kernel.DiagonalKernel`.

    Raises:
        ZooError: if a name is unknown or the degree below 2.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        form: str = "pb",
        degree: int = 2,
        bend: str = "id",
        **kernel_args: object,
    ) -> None:
        super().__init__()
        check_choice("LiquidS4: form", form, ("exact", "pb", "kb"))
        check_choice("LiquidS4: bend", bend, BENDS)
        if degree < 2:
            raise ZooError(f"LiquidS4: degree {degree}: a product has two factors or more")
        self.form, self.degree, self.bend = form, degree, bend
        settings = dict(init="diag-legs") | kernel_args
        self.kernel = DiagonalKernel(d_model, d_state=d_state, **settings)  # type: ignore[arg-type]
        self.D = nn.Parameter(torch.randn(d_model))

    def modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """log of A-bar, B-bar and C, ``[H, N/2]`` each."""
        log_A, _, B, C = self.kernel.discrete()
        return log_A, B, C[0]

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        with without_autocast(x):
            u = at_least_fp32(x)
            y = self._exact(u, state) if self.form == "exact" else self._approximate(u, state)
            return (y + at_least_fp32(self.D) * u).to(x.dtype)

    def _exact(self, u: Tensor, state: TensorState | None) -> Tensor:
        log_A, B, C = self.modes()
        b = (u[..., None] * B).flatten(2)  # [B, L, H N/2]
        h, last = diagonal_scan(
            log_A.exp().flatten() + b, b, return_last_state=True,
            initial_state=None if state is None else state.parts[0],
        )  # fmt: skip
        if state is not None:
            state.parts = (last,)
        return 2 * torch.einsum("bthn,hn->bth", h.unflatten(-1, C.shape), C).real

    def _approximate(self, u: Tensor, state: TensorState | None) -> Tensor:
        log_A, B, C = self.modes()
        length, most = u.shape[1], self.degree - 1
        before = u.new_zeros(len(u), most, u.shape[2]) if state is None else state.parts[-1]
        line = torch.cat([before, u], 1)
        products, signals = u, [u]
        for back in range(1, self.degree):
            products = products * line[:, most - back : most - back + length]
            signals.append(BENDS[self.bend](products))
        if self.form == "pb":
            # the products do not enter the state
            coefficients = [2 * (C * B**p).sum(-1).real for p in range(2, self.degree + 1)]
            bent = sum(
                (c * s for c, s in zip(coefficients, signals[1:], strict=True)),
                torch.zeros_like(u),
            )
            signals = signals[:1]
        else:
            bent = torch.zeros_like(u)
        if state is None:
            for power, signal in enumerate(signals, 1):
                K = vandermonde_kernel(C * B**power, log_A, length)
                bent = bent + fft_conv(signal.transpose(1, 2), K).transpose(1, 2)
            return bent
        b = sum((s[..., None] * B**p for p, s in enumerate(signals, 1)), B.new_zeros(()))
        h, last = diagonal_scan(
            log_A.exp().flatten(), b.flatten(2), initial_state=state.parts[0],
            return_last_state=True,
        )  # fmt: skip
        state.parts = (last, line[:, length:])
        return bent + 2 * torch.einsum("bthn,hn->bth", h.unflatten(-1, C.shape), C).real

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, H N/2]``, and of the convolutions the last inputs ``[B, degree - 1, H]``."""
        log_A, _, C = self.modes()
        states = C.new_zeros(batch_size, log_A.numel())
        if self.form == "exact":
            return TensorState(states)
        D = at_least_fp32(self.D)
        return TensorState(states, D.new_zeros(batch_size, self.degree - 1, len(D)))


class Sine(nn.Module):
    """sin(w x) with a learned w of each unit."""

    def __init__(self, dim: int, w: float) -> None:
        super().__init__()
        self.freq = nn.Parameter(w * torch.ones(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to the same."""
        return torch.sin(self.freq * x)


class PositionalEmbedding(nn.Module):
    """Times from 0 to 1 and waves of them, ``[1, L, emb_dim]``; the waves are learned."""

    t: Tensor

    def __init__(self, emb_dim: int, length: int) -> None:
        super().__init__()
        t = torch.linspace(0, 1, length)[:, None]
        bands = (emb_dim - 1) // 2
        angle = torch.linspace(1e-4, bands - 1, bands) * (
            2 * math.pi * torch.arange(length)[:, None] / length
        )
        self.z = nn.Parameter(torch.cat([t, angle.cos(), -angle.sin()], -1)[None])
        self.register_buffer("t", t[None])


class Modulation(nn.Module):
    """Filters fall exponentially, each at a rate of its own."""

    deltas: Tensor

    def __init__(
        self, dim: int, fast: float = 0.3, slow: float = 1.5, target: float = 1e-2
    ) -> None:
        super().__init__()
        rates = torch.linspace(math.log(target) / slow, math.log(target) / fast, dim)
        self.register_buffer("deltas", rates[None, None])

    def forward(self, t: Tensor, x: Tensor, shift: float) -> Tensor:
        """Times ``[1, L, 1]`` and filters ``[1, L, dim]`` to the same."""
        return x * ((-t * self.deltas.abs()).exp() + shift)


class HyenaFilter(nn.Module):
    """Filters that a small network makes of the time.

    Args:
        dim: how many.
        length: steps.
        emb_dim: of the times, odd.
        width: of the network.
        w: of its sines; one module, so that all its layers share them.
        shift: what filters fall to, as a factor.
    """

    def __init__(
        self, dim: int, length: int, emb_dim: int, width: int, w: float, shift: float
    ) -> None:
        super().__init__()
        self.shift = shift
        self.bias = nn.Parameter(torch.randn(dim))
        self.pos_emb = PositionalEmbedding(emb_dim, length)
        sine = Sine(width, w)
        self.implicit_filter = nn.Sequential(
            nn.Linear(emb_dim, width), sine, nn.Linear(width, width), sine,
            nn.Linear(width, width), sine, nn.Linear(width, dim, bias=False),
        )  # fmt: skip
        self.modulation = Modulation(dim)

    def forward(self, length: int) -> Tensor:
        """``[dim, length]``."""
        z, t = self.pos_emb.z[:, :length], self.pos_emb.t[:, :length]
        return self.modulation(t, self.implicit_filter(z), self.shift)[0].T


class Hyena(nn.Module):
    r"""Hyena's operator (arXiv 2302.10866): products with projections and long filters by turns.

    With :math:`x_0, \dots, x_{o-1}, v` the projections after a short convolution, for i from o - 1
    to 1: :math:`v \leftarrow h_i * (x_i v) + b_i\, x_i v`, and the output is
    :math:`W (x_0 v)`. There are o - 1 filters for order o, as in the authors' code.

    Args:
        d_model: H.
        l_max: longest input.
        order: o.
        filter_order: width of the network that makes the filters.
        emb_dim: of the times that it reads, odd.
        short_filter_order: taps of the short convolution.
        w: frequency of its sines at the start.
        shift: see :class:`HyenaFilter`.

    Raises:
        ZooError: if settings do not fit.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        order: int = 2,
        filter_order: int = 64,
        emb_dim: int = 3,
        short_filter_order: int = 3,
        w: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        if order < 2 or emb_dim < 3 or emb_dim % 2 == 0:
            raise ZooError(
                f"Hyena: order is 2 or more and emb_dim odd, from 3 on, got {order} and {emb_dim}"
            )
        self.l_max, self.order = l_max, order
        self.in_proj = nn.Linear(d_model, (order + 1) * d_model)
        width = (order + 1) * d_model
        self.short_filter = nn.Conv1d(width, width, short_filter_order, groups=width)
        self.filter_fn = HyenaFilter(d_model * (order - 1), l_max, emb_dim, filter_order, w, shift)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor) -> Tensor:
        """``[B, L, H]`` to the same.

        Raises:
            ZooError: if the input is longer than ``l_max``.
        """
        length = u.shape[1]
        if length > self.l_max:
            raise ZooError(
                f"Hyena: the filters have {self.l_max} steps, got an input of {length}: set l_max"
            )
        z = self.in_proj(u).transpose(1, 2)
        z = causal_conv1d(z, self.short_filter.weight[:, 0], self.short_filter.bias)
        *x, v = z.chunk(self.order + 1, 1)  # type: ignore[union-attr]
        # filters of a channel lie together
        K = self.filter_fn(length).unflatten(0, (-1, self.order - 1)).transpose(0, 1)
        bias = self.filter_fn.bias.unflatten(0, (-1, self.order - 1)).T
        for k, b, gate in zip(K, bias, reversed(x[1:]), strict=True):
            v = fft_conv(v, k, b, gate_before=gate)
        return self.out_proj((v * x[0]).transpose(1, 2))
