r"""Linear time-invariant state space models as convolution kernels and as recurrences.

A kernel module maps its parameters to ``kernel(L)``, the answer of every feature to an impulse, and
to a :class:`~zoo.layers.ssm_recurrence.Recurrence`, which makes the same outputs step by step:

.. math::
    K_l = C \bar A^l \bar B, \qquad x_t = \bar A x_{t-1} + \bar B u_t, \quad y_t = C x_t

Letters: C channels, H features (``d_model``), N complex numbers of a state (``d_state / 2``, one of
each conjugate pair), S copies of A and B (``n_ssm``), of which feature h has the one of number
h mod S, R the rank. Parameters have the names, shapes and signs of the fourth version of S4's code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.hippo import initial_ssm
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_recurrence import (
    DenseRecurrence,
    DiagonalRecurrence,
    LowRankRecurrence,
    Recurrence,
    matrix_power,
    with_conjugates,
)
from zoo.ops import cauchy_kernel, vandermonde_kernel

TRANSFORMS = ("none", "exp", "relu", "sigmoid", "softplus")
DISCRETISATIONS = ("zoh", "bilinear", "dss")


def transformed(parameter: Tensor, transform: str) -> Tensor:
    """The positive number that a parameter stands for."""
    if transform == "exp":
        return parameter.exp()
    if transform == "relu":
        return parameter.relu() + 1e-4
    if transform == "sigmoid":
        return parameter.sigmoid()
    return F.softplus(parameter) if transform == "softplus" else parameter


def untransformed(value: Tensor, transform: str) -> Tensor:
    """The parameter that stands for a number, of at least 1e-4."""
    value = value.clamp(min=1e-4)
    if transform == "exp":
        return value.log()
    if transform == "sigmoid":
        return value.logit()
    return value + torch.log(-torch.expm1(-value)) if transform == "softplus" else value


class DiagonalKernel(nn.Module):
    r"""Kernel of a diagonal state space model (S4D, arXiv 2206.11893; DSS, arXiv 2203.14343).

    .. math::
        K_l = 2\,\mathrm{Re} \sum_n C_n \bar B_n \bar A_n^l

    Args:
        d_model: H.
        channels: C, kernels of each feature over the same states.
        l_max: longest input; None if there is no bound.
        lr: learning rate of A, B, C and dt, or of those it names; 0 makes a buffer of the
            parameter. Others are for :meth:`learning_rates`.
        d_state: real size of each feature's state, even; with ``is_real`` the number of its modes.
        deterministic: steps evenly spread, C for the first coefficient; for tests.
        dt_min, dt_max: initial steps are log-uniform between them.
        dt_tie: one step for all modes of a feature.
        dt_transform: what turns ``inv_dt`` into the step.
        rank: R, of the low-rank part, which this kernel does not use.
        n_ssm: S; None for H.
        init: name or names, see :func:`zoo.layers.hippo.initial_ssm`.
        disc: "zoh", "bilinear" or "dss" (softmax over the length; A may then be unstable).
        dt_fast: ``inv_dt`` is sinh of its parameter.
        real_transform, imag_transform: what turns ``A_real`` and ``A_imag`` into minus the real
            and the imaginary part of A.
        bandlimit: silence modes above this part of the sampling frequency; None for none.
        is_real: no imaginary part; a sum of decaying exponentials.
        init_args: of :func:`zoo.layers.hippo.diagonal`.

    Raises:
        ZooError: if settings do not fit.
    """

    A_real: Tensor
    A_imag: Tensor
    inv_dt: Tensor
    B: Tensor
    C: Tensor

    def __init__(
        self,
        d_model: int,
        channels: int = 1,
        l_max: int | None = None,
        lr: float | dict[str, float | None] | None = None,
        d_state: int = 64,
        deterministic: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        rank: int = 1,
        n_ssm: int | None = None,
        init: str | list[str] | tuple[str, ...] = "diag-lin",
        disc: str = "zoh",
        dt_fast: bool = False,
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        is_real: bool = False,
        **init_args: Any,
    ) -> None:
        super().__init__()
        if disc not in DISCRETISATIONS:
            raise ZooError(f"disc is one of {', '.join(DISCRETISATIONS)}, not '{disc}'")
        for name in (dt_transform, real_transform, imag_transform):
            if name not in TRANSFORMS:
                raise ZooError(f"a transform is one of {', '.join(TRANSFORMS)}, not '{name}'")
        copies = d_model if n_ssm is None else n_ssm
        if copies < 1 or d_model % copies:
            raise ZooError(f"n_ssm must divide d_model, got {copies} and {d_model}")
        self.d_model, self.channels, self.l_max, self.rank = d_model, channels, l_max, rank
        self.disc, self.dt_fast, self.bandlimit, self.is_real = disc, dt_fast, bandlimit, is_real
        self.dt_transform = dt_transform
        self.real_transform, self.imag_transform = real_transform, imag_transform
        self.repeat = d_model // copies
        self.N = N = d_state if is_real else d_state // 2

        A, P, B, V = initial_ssm(init, 2 * d_state if is_real else d_state, rank, copies,
                                 **init_args)  # fmt: skip
        if deterministic:  # the first coefficient in the basis of the original matrix
            C = V[:, 0].conj().repeat(self.repeat, 1).expand(channels, -1, -1)
            log_dt = torch.linspace(math.log(dt_min), math.log(dt_max), d_model)[:, None]
        else:
            C = torch.randn(channels, d_model, N, dtype=torch.complex64)
            span = math.log(dt_max) - math.log(dt_min)
            log_dt = torch.rand(d_model, 1 if dt_tie else N) * span + math.log(dt_min)
        inv_dt = log_dt if dt_transform == "exp" else untransformed(log_dt.exp(), dt_transform)

        self._lr = lr if isinstance(lr, dict) else dict.fromkeys(("A", "B", "C", "dt"), lr)
        self._keep("inv_dt", inv_dt.asinh() if dt_fast else inv_dt, "dt")
        self._keep("C", self._stored(C), "C")
        self._keep("B", self._stored(B)[None], "B")
        self._keep("A_real", untransformed(-A.real, real_transform), "A")
        if not is_real:
            imag = -A.imag if imag_transform == "none" else untransformed(-A.imag, imag_transform)
            self._keep("A_imag", imag, "A")
        self._keep_low_rank(P)

    def _keep_low_rank(self, P: Tensor) -> None:
        """A diagonal matrix has none."""

    def _stored(self, x: Tensor) -> Tensor:
        x = x.to(torch.complex64).resolve_conj()
        return x.real if self.is_real else torch.view_as_real(x)

    def _keep(self, name: str, value: Tensor, kind: str) -> None:
        value = value.detach().to(torch.get_default_dtype(), copy=True).contiguous()
        if self._lr.get(kind) == 0:
            self.register_buffer(name, value)
        else:
            self.register_parameter(name, nn.Parameter(value))

    def learning_rates(self) -> dict[str, float | None]:
        """Parameters without weight decay, A, B, dt and P, and their learning rate if it is not
        that of all others; C too if it has one of its own."""
        kinds = {"A_real": "A", "A_imag": "A", "P": "A", "B": "B", "inv_dt": "dt", "C": "C"}
        rates = {name: self._lr.get(kinds[name]) for name, _ in self.named_parameters()}
        return {name: lr for name, lr in rates.items() if name != "C" or lr is not None}

    def _complex(self, x: Tensor) -> Tensor:
        x = at_least_fp32(x)
        return x if self.is_real else torch.view_as_complex(x.contiguous())

    def _input(self) -> Tensor:
        """B ``[1, H, N]``."""
        return self._complex(self.B).repeat(1, self.repeat, 1)

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt ``[H, 1 or N]``, A ``[H, N]``, B ``[1, H, N]`` and C ``[C, H, N]``.

        Args:
            rate: factor of dt: sampling ``rate`` times slower than in training.
        """
        A = -transformed(at_least_fp32(self.A_real), self.real_transform)
        if not self.is_real:
            A = torch.complex(A, -transformed(at_least_fp32(self.A_imag), self.imag_transform))
        inv_dt = at_least_fp32(self.inv_dt)
        dt = transformed(inv_dt.sinh() if self.dt_fast else inv_dt, self.dt_transform) * rate
        A = A.repeat(self.repeat, 1)
        B, C = self._input(), self._complex(self.C)
        if self.bandlimit is not None and not self.is_real:
            C = C * (dt / rate * A.imag.abs() / (2 * math.pi) < self.bandlimit / 2)
        return dt, A, B, C

    def discrete(
        self, rate: float = 1.0, length: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log of A-bar, A-bar, B-bar ``[H, N]`` and C ``[C, H, N]``."""
        dt, A, B, C = self.continuous(rate)
        if self.is_real:
            A, B, C = (t.to(torch.promote_types(t.dtype, torch.complex64)) for t in (A, B, C))
        x = dt * A
        if self.disc == "zoh":
            # exp(x) - 1, exact where x is small
            return x, x.exp(), B[0] * 2 * (x / 2).exp() * (x / 2).sinh() / A, C
        if self.disc == "bilinear":
            A_bar = (1 + x / 2) / (1 - x / 2)
            return A_bar.log(), A_bar, B[0] * dt / (1 - x / 2), C
        if length is None:
            raise ZooError("disc='dss' is a softmax over the length: set l_max to make steps")
        falling = torch.where(A.real > 0, -x, x)
        span = ((falling * length).exp() - 1) * A
        B_bar = B[0] * (falling.exp() - 1) * span.conj() / (span * span.conj() + 1e-7)
        # what grows is counted from the end
        return x, x.exp(), B_bar, C * torch.where(A.real > 0, -x * (length - 1), 0 * x).exp() / 2

    def forward(
        self, L: int, rate: float = 1.0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The kernel, and what a state adds to the outputs.

        Args:
            L: length.
            rate: see :meth:`continuous`.
            state: of the recurrence, before the first input, ``[B, H, N]``.

        Returns:
            K ``[C, H, L]``, and ``[B, C, H, L]`` or None.

        Raises:
            ZooError: if a state is given for "dss", whose kernel depends on the length.
        """
        log_A, A_bar, B_bar, C = self.discrete(rate, L)
        K = vandermonde_kernel(C * B_bar, log_A, L)
        if state is None:
            return K, None
        if self.disc == "dss":
            raise ZooError("disc='dss' is a softmax over the length: no state passes between parts")
        return K, vandermonde_kernel(C * (A_bar * state)[:, None], log_A, L)

    @torch.no_grad()
    def recurrence(self, mode: str | None = None, rate: float = 1.0) -> Recurrence:
        """The same model step by step, from the parameters as they are now.

        Raises:
            ZooError: if the mode is not "diagonal", or the model unstable.
        """
        if mode not in (None, "diagonal"):
            raise ZooError(f"a diagonal state space model steps in mode 'diagonal', not '{mode}'")
        log_A, A_bar, B_bar, C = self.discrete(rate, self.l_max)
        check_stable(A_bar, "disc='dss'" if self.disc == "dss" else None)
        return DiagonalRecurrence(log_A, A_bar, B_bar, 2 * C)


class NPLRKernel(DiagonalKernel):
    r"""Kernel of a state matrix that is diagonal plus low rank, diag(A) - P P* (S4, section 3).

    The generating function of the kernel, truncated at L, is taken at the roots of unity omega: a
    Cauchy product at z = 2 (1 - omega)/(1 + omega) and Woodbury's correction; an inverse Fourier
    transform gives the kernel. The truncation stands in the parameter: C is C (I - A-bar^L) for the
    length ``l_kernel``; it grows, and C changes with it, when a longer kernel is asked for.
    ``l_kernel`` is 0 while C is still C itself, which the first call changes.

    Args: of :class:`DiagonalKernel`; ``disc`` is bilinear whatever it says, ``is_real`` has no
        meaning here.
    """

    P: Tensor
    l_kernel: Tensor

    def __init__(
        self, d_model: int, channels: int = 1, l_max: int | None = None, *,
        init: str | list[str] | tuple[str, ...] = "legs", **settings: Any,
    ) -> None:  # fmt: skip
        if settings.get("is_real"):
            raise ZooError("a state matrix of low rank is complex: expected is_real: false")
        super().__init__(d_model, channels, l_max, init=init, **settings)
        self.register_buffer("l_kernel", torch.tensor(0))
        self.length = 0  # as l_kernel says, where code that is compiled can read it
        if l_max and not self.C.is_meta:
            self.grow(l_max)

    def _keep_low_rank(self, P: Tensor) -> None:
        self._keep("P", self._stored(P), "A")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.l_kernel.is_meta:
            self.length = int(self.l_kernel)

    @torch.no_grad()
    def grow(self, length: int) -> None:
        """Make C the one of this length, or of the first doubling of the old one that covers it."""
        while self.length < length:
            doubled = self.length > 0
            step = self.length or length
            A_bar = self._dense(1.0)[0]
            power = matrix_power(A_bar, step).transpose(-1, -2)  # [H, 2N, 2N]
            C = with_conjugates(self._complex(self.C))
            moved = torch.einsum("hmn,chn->chm", power, C)
            C = (C + moved if doubled else C - moved)[..., : self.N]
            self.C.copy_(torch.view_as_real(C.resolve_conj()))
            self.length += step
            self.l_kernel.fill_(self.length)

    def _low_rank(self) -> Tensor:
        """P ``[R, H, N]``."""
        return self._complex(self.P).repeat(1, self.repeat, 1)

    def forward(
        self, L: int, rate: float = 1.0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`DiagonalKernel.forward`; the state is half ``[B, H, N]`` or whole
        ``[B, H, 2N]``, as its recurrence has it."""
        asked = round(rate * L)
        if self.length < asked:
            self.grow(self.l_max if not self.length and self.l_max else asked)
        if self.length < asked:
            self.grow(asked)
        length = round(self.length / rate)
        dt, A, B, C = self.continuous(rate)
        P, N = self._low_rank(), self.N
        if state is not None:
            s = with_conjugates(state) if state.shape[-1] == N else state
            full_P = with_conjugates(P)
            s_A = s * with_conjugates(A) - torch.einsum(
                "bhm,rhm,rhn->bhn", s, full_P.conj(), full_P
            )
            # the input that would have brought the state about: (I + dt/2 A) s / dt
            B = torch.cat([(s[..., :N] / dt + s_A[..., :N] / 2), B])
        rows = torch.cat([B, P])[:, None] * torch.cat([C, P.conj()]) * dt  # [(B+)1+R, C+R, H, N]
        z = _nodes(length, A)
        r = cauchy_kernel(rows, z, A * dt)
        # 2/(1 + omega) = 1 + z/2
        K = torch.fft.irfft(_woodbury(r, P.shape[0]) * (1 + z / 2), n=length)[..., :L]
        return K[-1], None if state is None else K[:-1]

    def _linear(self, rate: float) -> LowRankRecurrence:
        """One step in O(N), without C."""
        dt, A, B, C = self.continuous(rate)
        return LowRankRecurrence.bilinear(dt, A, self._low_rank(), B[0], C)

    def _dense(self, rate: float) -> tuple[Tensor, Tensor]:
        """A-bar ``[H, 2N, 2N]`` and B-bar ``[H, 2N]`` over both of each conjugate pair."""
        step = self._linear(rate)
        identity = torch.eye(2 * self.N, dtype=step.B.dtype, device=step.B.device)[:, None]
        A_bar = step.advance_one(identity.expand(-1, self.d_model, -1), None)
        return A_bar.permute(1, 2, 0), with_conjugates(step.input())

    @torch.no_grad()
    def recurrence(self, mode: str | None = None, rate: float = 1.0) -> Recurrence:
        """The same model step by step, from the parameters as they are now.

        Args:
            mode: "linear" (O(N) a step, half of the state; None is the same), "dense" (by the
                matrix) or "diagonal" (by its eigenvalues; a step is fastest, but HiPPO's own
                matrices are too far from normal for that).
            rate: see :meth:`DiagonalKernel.continuous`.

        Raises:
            ZooError: if the mode is unknown, or the matrix cannot be diagonalised.
        """
        A_bar, B_bar = self._dense(rate)
        C = with_conjugates(self._complex(self.C))
        if self.length:
            power = matrix_power(A_bar, round(self.length / rate)).transpose(-1, -2)
            identity = torch.eye(2 * self.N, dtype=power.dtype, device=power.device)
            C = torch.linalg.solve(identity - power, C.unsqueeze(-1)).squeeze(-1)
        if mode == "dense":
            return DenseRecurrence(A_bar, B_bar, C)
        if mode in (None, "linear"):
            return self._linear(rate).with_output(2 * C[..., : self.N])
        if mode != "diagonal":
            raise ZooError(f"the mode of steps is linear, dense or diagonal, not '{mode}'")
        return _diagonalised(A_bar, B_bar, C)


def _diagonalised(A: Tensor, B: Tensor, C: Tensor) -> DiagonalRecurrence:
    exact = A.to(torch.complex128)
    eigenvalues, V = torch.linalg.eig(exact)
    condition = float(torch.linalg.cond(V).max())
    if not condition * torch.finfo(A.dtype).eps < 1e-2:
        raise ZooError(
            f"the state matrix cannot be diagonalised in {A.dtype}: the condition number of its "
            f"eigenvectors is {condition:.1e}; make steps in mode 'linear'"
        )
    check_stable(eigenvalues, None)
    B = torch.linalg.solve(V, B.to(V.dtype).unsqueeze(-1)).squeeze(-1)
    C = torch.einsum("hnm,chn->chm", V, C.to(V.dtype))
    parts = (part.to(A.dtype) for part in (eigenvalues.log(), eigenvalues, B, C, V))
    return DiagonalRecurrence(*parts)


def check_stable(A_bar: Tensor, allowed_by: str | None) -> None:
    """Steps with an eigenvalue outside of the unit circle grow without bound.

    Raises:
        ZooError: if there is one and nothing allows it.
    """
    if allowed_by is not None or A_bar.is_meta:
        return
    largest = float(A_bar.abs().max())
    if largest > 1 + 1e-4:
        raise ZooError(
            f"the state matrix is unstable: its largest eigenvalue is {largest:.4g} "
            "a step, expected at most 1; train with real_transform='exp' or load other weights"
        )


def _nodes(length: int, like: Tensor) -> Tensor:
    """z = 2 (1 - omega)/(1 + omega) at the first half of the roots of unity, omega_k =
    exp(-2 pi i k / length)."""
    angle = torch.arange(length // 2 + 1, device=like.device, dtype=torch.float64) / length
    # For even lengths the last one is infinite, and the kernel's value there a limit; its fourth
    # power must still be a number.
    bound = 1e8 if like.dtype == torch.complex64 else 1e12
    z = 2 * (math.pi * angle).tan().abs().clamp(max=bound)
    return torch.complex(torch.zeros_like(z), z).to(like.dtype)


def _woodbury(r: Tensor, rank: int) -> Tensor:
    """r00 - r01 (I + r11)^-1 r10 of the blocks of r, whose last rows and columns are P's."""
    r00, r01 = r[:-rank, :-rank], r[:-rank, -rank:]
    r10, r11 = r[-rank:, :-rank], r[-rank:, -rank:]
    if rank == 1:
        return r00 - r01 * r10 / (1 + r11)
    inner = torch.eye(rank, dtype=r.dtype, device=r.device) + r11.permute(2, 3, 0, 1)
    solved = torch.linalg.solve(inner, r10.permute(2, 3, 0, 1))  # [H, L, R, C]
    return r00 - torch.einsum("arhl,hlrc->achl", r01, solved)
