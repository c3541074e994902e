"""Time-invariant layers of the survey that have no paper of their own here: DSS, LRU, Mega's EMA,
and the Legendre memory unit.

All map ``[B, L, H]`` to the same, go on with a state of :meth:`allocate_state`, and are one
convolution, whose kernel :meth:`impulse` gives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.devices import without_autocast
from zoo.errors import ZooError, check_choice
from zoo.layers.cache import TensorState
from zoo.layers.ema import MultiHeadEMA
from zoo.layers.precision import at_least_fp32
from zoo.layers.s4 import SSMConv
from zoo.layers.ssm_recurrence import krylov
from zoo.models.ssm._lmuformer_steps import legendre_memory
from zoo.ops import diagonal_scan, fft_conv, vandermonde_kernel


class DSS(SSMConv):
    r"""Diagonal state spaces without B (arXiv 2203.14343), on the kernel of S4D.

    .. math::
        K_l = \mathrm{Re} \sum_n \frac{C_n}{A_n} (e^{\Delta A_n} - 1)\, e^{\Delta A_n l}
        \quad\text{or}\quad
        K_l = \mathrm{Re} \sum_n \frac{C_n}{A_n} \mathrm{softmax}_l(\Delta A_n l)

    over both modes of each conjugate pair. A softmax depends on the length: that variant makes
    steps for inputs of ``l_max`` alone, and passes no state between parts.

    Args:
        d_model: H.
        d_state: modes, even; they start at those of HiPPO-LegS.
        variant: "exp" or "softmax".
        l_max: longest input; None for no bound.
        dt_min, dt_max: initial steps are log-uniform between them.

    Raises:
        ZooError: if the variant is unknown.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        variant: str = "exp",
        l_max: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> None:
        check_choice("DSS: variant", variant, ("exp", "softmax"))
        super().__init__(
            d_model, l_max, activation=None, mode="diag", init="diag-legs", d_state=d_state,
            disc="zoh" if variant == "exp" else "dss", lr={"B": 0.0}, dt_min=dt_min, dt_max=dt_max,
        )  # fmt: skip
        self.kernel.B.copy_(torch.tensor([1.0, 0.0]))  # there is none


class LRU(nn.Module):
    r"""The linear recurrent unit (arXiv 2303.06349, section 3).

    .. math::
        x_t = \Lambda x_{t-1} + e^{g} \cdot (B u_t), \quad y_t = \mathrm{Re}(C x_t) + D u_t,
        \quad \Lambda = e^{-e^{\nu} + i e^{\theta}}

    Eigenvalues start uniformly on the ring between two radii, and g such that a state's variance
    is that of its input (equations 6 and 7).

    Args:
        d_model: H.
        d_state: N, complex.
        r_min, r_max: of the ring.
        max_phase: of the eigenvalues.

    Raises:
        ZooError: if the radii are no ring inside of the unit circle.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        if not 0 <= r_min < r_max <= 1:
            raise ZooError(f"LRU: expected 0 <= r_min < r_max <= 1, got {r_min} and {r_max}")
        square = torch.rand(d_state) * (r_max**2 - r_min**2) + r_min**2
        self.nu_log = nn.Parameter((-0.5 * square.clamp(1e-12, 1 - 1e-7).log()).log())
        phase = max_phase * torch.rand(d_state)
        self.theta_log = nn.Parameter(phase.clamp(min=1e-6).log())
        modulus = (-self.nu_log.detach().exp()).exp()
        self.gamma_log = nn.Parameter((1 - modulus**2).sqrt().log())
        self.B = nn.Parameter(torch.randn(d_state, d_model, 2) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) / math.sqrt(d_state))
        self.D = nn.Parameter(torch.randn(d_model))

    def discrete(self) -> tuple[Tensor, Tensor]:
        """The logarithm of Lambda ``[N]``, and e^g B ``[N, H]``."""
        log = torch.complex(-at_least_fp32(self.nu_log).exp(), at_least_fp32(self.theta_log).exp())
        B = torch.view_as_complex(at_least_fp32(self.B).contiguous())
        return log, at_least_fp32(self.gamma_log).exp()[:, None] * B

    def impulse(self, length: int) -> Tensor:
        """``[H, H, length]``, outputs by inputs."""
        log, B = self.discrete()
        C = torch.view_as_complex(at_least_fp32(self.C).contiguous())
        K = vandermonde_kernel((C[:, None] * B.T)[:, :, None] / 2, log[None], length)[:, :, 0]
        return with_skip(K, torch.diag(at_least_fp32(self.D)))

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        with without_autocast(x):
            u = at_least_fp32(x)
            log, B = self.discrete()
            into = torch.view_as_real(B).transpose(1, 2).flatten(0, 1)  # [2N, H]
            Bu = torch.view_as_complex(F.linear(u, into).unflatten(-1, (-1, 2)))
            h, last = diagonal_scan(
                log.exp(), Bu, initial_state=None if state is None else state.parts[0],
                return_last_state=True,
            )  # fmt: skip
            if state is not None:
                state.parts = (last,)
            C = at_least_fp32(self.C) * u.new_tensor([1.0, -1.0])  # the real part of a product
            y = F.linear(torch.view_as_real(h).flatten(-2), C.flatten(1))
            return (y + at_least_fp32(self.D) * u).to(x.dtype)

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, N]``."""
        log = self.discrete()[0]
        return TensorState(log.new_zeros(batch_size, len(log)))


class MegaEMA(MultiHeadEMA):
    """Mega's damped moving averages, without their skip weight.

    Args:
        d_model: H.
        d_state: N.
    """

    def __init__(self, d_model: int, d_state: int = 16) -> None:
        super().__init__(d_model, d_state, skip=False)


class LegendreUnit(nn.Module):
    """A linear Legendre memory unit: one signal of all features, the memory of its last ``theta``
    steps, and outputs of both (arXiv 2102.11417, without its non-linearities).

    Args:
        d_model: H.
        d_state: q, polynomials.
        theta: steps that they stand for.
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_model: int, d_state: int = 64, theta: int = 128) -> None:
        super().__init__()
        self.W_u = nn.Linear(d_model, 1, bias=False)
        self.W_m = nn.Linear(d_state, d_model, bias=False)
        self.D = nn.Parameter(torch.randn(d_model))
        A, B, _ = legendre_memory(d_state, theta)
        self.register_buffer("A", torch.tensor(A), persistent=False)
        self.register_buffer("B", torch.tensor(B[:, 0]), persistent=False)

    def impulse(self, length: int) -> Tensor:
        """``[H, H, length]``, outputs by inputs."""
        W_m, W_u = (at_least_fp32(layer.weight) for layer in (self.W_m, self.W_u))
        powers = krylov(self.A.to(W_m.dtype), self.B.to(W_m.dtype), length)  # [q, L]
        K = (W_m @ powers)[:, None] * W_u.T[None]
        return with_skip(K, torch.diag(at_least_fp32(self.D)))

    def forward(self, x: Tensor, state: TensorState | None = None) -> Tensor:
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        u = at_least_fp32(self.W_u(x)).transpose(1, 2)  # [B, 1, L]
        A, B = self.A.to(u.dtype), self.B.to(u.dtype)
        with without_autocast(x):
            m = fft_conv(u, krylov(A, B, x.shape[1])[:, None])[:, :, 0]  # [B, q, L]
            if state is not None:
                m = m + krylov(A, state.parts[0] @ A.T, x.shape[1])
                state.parts = (m[..., -1],)
        return self.W_m(m.transpose(1, 2).to(x.dtype)) + self.D * x

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, q]``."""
        return TensorState(at_least_fp32(self.D).new_zeros(batch_size, len(self.B)))


def with_skip(K: Tensor, D: Tensor) -> Tensor:
    """A kernel ``[..., L]`` with a skip weight ``[...]`` at step 0."""
    return torch.cat([(K[..., 0] + D)[..., None], K[..., 1:]], dim=-1)
