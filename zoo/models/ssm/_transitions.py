"""LSSL's state matrices, as parameters from which A and B of x' = A x + B u follow.

Parameters have the names and shapes of the authors' code (state-spaces/s4,
``src/models/hippo/transition.py``). Two kinds of it store the matrix of x' = -A x + B u.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.hippo import transition
from zoo.layers.precision import at_least_fp32


class Transition(nn.Module):
    """A state matrix and an input.

    Args:
        parameters: named tensors.
        trainable: else they are buffers.
        copies: as many, along a first dimension; None for one for all features.
        lr: learning rate.
    """

    def __init__(
        self, parameters: dict[str, Tensor], trainable: bool, copies: int | None, lr: float
    ) -> None:
        super().__init__()
        self.lr = lr
        for name, value in parameters.items():
            value = value.to(torch.get_default_dtype())
            if copies is not None:
                value = value.expand(copies, *value.shape).clone()
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def learning_rates(self) -> dict[str, float | None]:
        """Of all parameters."""
        return {name: self.lr for name, _ in self.named_parameters()}

    def continuous(self) -> tuple[Tensor, Tensor]:
        """A ``[..., N, N]`` and B ``[..., N]`` of x' = A x + B u."""
        raise NotImplementedError

    def discrete(self, dt: Tensor, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
        """A-bar ``[H, N, N]`` and B-bar ``[H, N]`` of steps dt ``[H]`` (appendix B.1).

        The generalised bilinear rule: alpha 1/2 is the bilinear one, 0 Euler's, 1 the backward one.
        """
        A, B = self.continuous()
        identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        step = dt[:, None, None]
        implicit = identity - alpha * step * A
        A_bar = torch.linalg.solve(implicit, identity + (1 - alpha) * step * A)
        B = (dt[:, None] * B).expand(len(dt), -1)
        return A_bar, torch.linalg.solve(implicit, B.unsqueeze(-1)).squeeze(-1)


class DenseTransition(Transition):
    """Any matrix: ``a`` is A and ``b`` is B."""

    a: Tensor
    b: Tensor

    def continuous(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return at_least_fp32(self.a), at_least_fp32(self.b)


class CumsumTransition(Transition):
    """-(lower triangle of ones + a I) and ``b`` times ones: Laguerre's, of two numbers."""

    a: Tensor
    b: Tensor

    def __init__(self, N: int, *args: Any) -> None:
        super().__init__(*args)
        self.N = N

    def continuous(self) -> tuple[Tensor, Tensor]:
        """The matrix of the two numbers."""
        a, b = at_least_fp32(self.a), at_least_fp32(self.b)
        ones = torch.ones(self.N, self.N, dtype=a.dtype, device=a.device)
        identity = torch.eye(self.N, dtype=a.dtype, device=a.device)
        return -(ones.tril() + a * identity), b * ones[0]


class TridiagonalTransition(Transition):
    """The family that LSSL trains (section 4.2): -P_l (T^-1 + diag(c)) P_r with tridiagonal T.

    ``dl``, ``d`` and ``du`` are T's diagonals (the outer ones padded to N + 1), ``pl`` and ``pr``
    diagonals P, and B is ``pl * b``.
    """

    dl: Tensor
    d: Tensor
    du: Tensor
    pl: Tensor
    pr: Tensor
    c: Tensor
    b: Tensor

    def continuous(self) -> tuple[Tensor, Tensor]:
        """By one dense inverse of T, which costs less than the powers that follow."""
        dl, d, du, pl, pr, c, b = (
            at_least_fp32(t) for t in (self.dl, self.d, self.du, self.pl, self.pr, self.c, self.b)
        )
        T = torch.diag_embed(d)
        T = T + torch.diag_embed(dl[..., 1:-1], -1) + torch.diag_embed(du[..., 1:-1], 1)
        A = torch.linalg.inv(T) + torch.diag_embed(c)
        return -(pl[..., :, None] * A * pr[..., None, :]), pl * b


class ToeplitzTransition(Transition):
    """-diag(c) L diag(1/c), L lower triangular Toeplitz of first column ``a``; B is ``c * b``."""

    a: Tensor
    b: Tensor
    c: Tensor

    def continuous(self) -> tuple[Tensor, Tensor]:
        """The matrix of its first column."""
        a, b, c = (at_least_fp32(t) for t in (self.a, self.b, self.c))
        n = torch.arange(a.shape[-1], device=a.device)
        below = n[:, None] - n
        L = a[..., below.clamp(min=0)] * (below >= 0)
        return -(c[..., :, None] * L / c[..., None, :]), c * b


#: What ``learn`` says: nothing, one matrix for all features, one each, one dense one for all.
FIXED, SHARED, SEPARATE, DENSE = range(4)


def make_transition(
    measure: str, N: int, learn: int, d_model: int, lr: float, **measure_args: Any
) -> Transition:
    """The transition of a measure, as the authors choose it.

    Args:
        measure: "legs", "legt", "lagt", "glagt", "cheb", "chebii", "jac", "toep" (Laguerre as a
            Toeplitz matrix), "random" or "identity".
        N: order.
        learn: 0 fixed, 1 one trained matrix, 2 one for each of ``d_model`` features, 3 a dense one.
        d_model: H.
        lr: learning rate.
        measure_args: of the measure; "legt" takes ``noise``, the spread of what the authors' code
            adds to T's diagonal (0.01 there, 0 here), "lagt" ``beta``, "glagt" ``alpha`` and
            ``beta``.

    Raises:
        ZooError: if the measure is unknown or has no trained form.
    """
    given = learn != FIXED, d_model if learn == SEPARATE else None, lr
    if learn == DENSE:
        A, B = (torch.as_tensor(m) for m in transition(measure, N, **measure_args))
        return DenseTransition({"a": A, "b": B}, *given)
    if measure == "random":
        return DenseTransition({"a": torch.randn(N, N) / N, "b": torch.ones(N)}, *given)
    if learn == FIXED and measure == "identity":
        return DenseTransition({"a": torch.eye(N), "b": torch.ones(N)}, *given)
    if learn == FIXED and measure == "lagt":
        numbers = {"a": torch.tensor(-0.5), "b": torch.tensor(measure_args.get("beta", 1.0))}
        return CumsumTransition(N, numbers, *given)
    if (learn == FIXED and measure == "glagt") or (learn != FIXED and measure == "toep"):
        return ToeplitzTransition(_toeplitz(measure, N, **measure_args), *given)
    known = TRIDIAGONAL - ({"lagt"} if learn == FIXED else {"jac"})
    check_choice("measure", measure, sorted(known | {"random"}))
    return TridiagonalTransition(_tridiagonal(measure, N, **measure_args), *given)


TRIDIAGONAL = {"legs", "legt", "lagt", "cheb", "chebii", "jac"}


def _tridiagonal(measure: str, N: int, noise: float = 0.0) -> dict[str, Tensor]:
    """P, T, c and b of a measure."""
    n, ones = torch.arange(N, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    padded = torch.nn.functional.pad(ones[1:], (1, 1))
    d, p, b, c = ones, ones, ones, 0 * ones
    dl, du = -padded, 0 * padded
    if measure == "legs":
        p, c = (2 * n + 1).sqrt(), -n / (2 * n + 1)
    elif measure == "lagt":
        c = -0.5 * ones
    elif measure == "jac":
        p, b = (2 * n + 2).sqrt(), 2 * ones
    else:  # Legendre in a window and Chebyshev: T is skew
        dl, du, d = -padded / 2, padded / 2, noise * torch.randn(N).double()
        if measure == "legt":
            p = (2 * n + 1).sqrt()
            d = d + 0.5 * ((n == 0) | (n == N - 1))
    return dict(dl=dl, d=d, du=du, pl=p, pr=p, c=c, b=b)


def _toeplitz(measure: str, N: int, alpha: float = 0.0, beta: float = 0.01) -> dict[str, Tensor]:
    a, ones = torch.ones(N, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    a[0] = 0.5
    if measure == "toep":
        return dict(a=a, b=ones, c=ones)
    if not (beta > 0 and alpha < 1):
        raise ZooError(f"glagt takes alpha below 1 and beta above 0, got {alpha} and {beta}")
    n = range(N)
    a[0] = (1 + beta) / 2
    scale = math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)
    log_binomial = [
        math.lgamma(alpha + k + 1) - math.lgamma(k + 1) - math.lgamma(alpha + 1) for k in n
    ]
    log_norm = [0.5 * (math.lgamma(k + alpha + 1) - math.lgamma(k + 1)) for k in n]
    return dict(
        a=a,
        b=scale * torch.tensor(log_binomial, dtype=torch.float64).exp(),
        c=(-torch.tensor(log_norm, dtype=torch.float64)).exp(),
    )
