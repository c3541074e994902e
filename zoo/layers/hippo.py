"""HiPPO matrices, and the initial values of structured state space models that come from them.

Everything is computed in float64 on the CPU, once for each size; what is drawn at random is drawn
by PyTorch, so that its seed decides.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError

#: Measures that :func:`transition` knows, with their rank away from normality (None: not normal
#: after a correction of low rank that anybody uses).
MEASURES = {
    "legs": 1,
    "legt": 2,
    "lagt": 1,
    "lmu": None,
    "fout": 1,
    "fourier_decay": 1,
    "fourier2": 1,
    "foud": 0,
    "legsd": 0,
    "glagt": None,
}
#: Other names of them.
SAME = {"fourier": "fout", "fourier_diag": "foud"}
#: What one name stands for in :func:`initial_ssm`: as many parts of the copies each.
COMBINATIONS = {
    "hippo": ("legs", "fourier"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fourier", "diag-inv", "diag-lin"),
}


class StructuredSSM(NamedTuple):
    """S copies of a state space model whose state matrix is diagonal plus low rank.

    Attributes:
        A: the diagonal, one of each conjugate pair, ``[S, N/2]``.
        P: the matrix is diag(A) - P P*, ``[R, S, N/2]``; zero if it is diagonal.
        B: input, ``[S, N/2]``.
        V: the basis that they are written in, ``[S, N, N/2]``.
    """

    A: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def transition(
    measure: str, N: int, alpha: float = 0.0, beta: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""State matrix and input of a HiPPO operator, x' = A x + B u (arXiv 2008.07669, 2206.12037).

    Args:
        measure: "legs" (scaled Legendre), "legt" (translated Legendre, halved as in S4's code),
            "lmu" (the same in the units of Legendre Memory Units), "lagt" (translated Laguerre),
            "glagt" (generalised Laguerre), "fout" or "fourier" (truncated Fourier), "fourier2" (on
            half the window), "fourier_decay", "foud" (normal by itself), "legsd" (LegS
            without its low-rank part).
        N: order.
        alpha: of "glagt".
        beta: of "lagt" (default 1) and "glagt" (default 0.01).

    Returns:
        A ``[N, N]`` and B ``[N]``, float64.

    Raises:
        ZooError: if the measure is unknown, or N is not even for a Fourier measure.
    """
    measure = SAME.get(measure, measure)
    _check(measure, N)
    n = np.arange(N, dtype=np.float64)
    root = np.sqrt(2 * n + 1)
    if measure in ("legs", "legsd"):
        A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
        B = root
        return (A + 0.5 * np.outer(B, B), B / 2) if measure == "legsd" else (A, B)
    sign = (-1.0) ** (n[:, None] - n[None, :])  # + where both are even or both odd
    if measure == "legt":
        A = -np.outer(root, root) * np.where(n[:, None] < n[None, :], sign, 1)
        return A / 2, root / 2
    if measure == "lmu":
        A = np.where(n[:, None] < n[None, :], -1, -sign) * (2 * n + 1)[:, None]
        return A, (-1.0) ** n * (2 * n + 1)
    if measure == "lagt":
        return np.eye(N) / 2 - np.tril(np.ones((N, N))), np.full(N, 1.0 if beta is None else beta)
    if measure == "glagt":
        return _generalised_laguerre(N, alpha, 0.01 if beta is None else beta)
    return _fourier(measure, N)


def _generalised_laguerre(N: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    n = np.arange(N)
    A = -np.eye(N) * (1 + beta) / 2 - np.tril(np.ones((N, N)), -1)
    log_norm = np.array([0.5 * (math.lgamma(k + alpha + 1) - math.lgamma(k + 1)) for k in n])
    log_binomial = np.array(
        [math.lgamma(alpha + k + 1) - math.lgamma(k + 1) - math.lgamma(alpha + 1) for k in n]
    )
    scale = math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)
    return A * np.exp(log_norm[None, :] - log_norm[:, None]), scale * np.exp(
        log_binomial - log_norm
    )


def _fourier(measure: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines in turn: of whole and half periods over the window."""
    frequencies = np.arange(N // 2, dtype=np.float64) * (1 if measure != "fourier2" else 2)
    B = np.zeros(N)
    B[0::2] = math.sqrt(2)
    B[0] = 1
    if measure == "foud":
        pairs = np.stack([frequencies, np.zeros(N // 2)], axis=1).reshape(-1)[:-1]
        return 2 * np.pi * (np.diag(pairs, -1) - np.diag(pairs, 1)) - np.eye(N) / 2, B
    pairs = np.stack([np.zeros(N // 2), frequencies], axis=1).reshape(-1)[1:]
    rotation = np.pi * (np.diag(pairs, -1) - np.diag(pairs, 1))
    # the other end of the window leaves it, as far as the state still knows it
    factor = {"fout": 1.0, "fourier_decay": 0.5, "fourier2": 2.0}[measure]
    return rotation - factor * np.outer(B, B), B * factor


def rank_correction(measure: str, N: int, rank: int = 1) -> np.ndarray:
    """P ``[rank, N]`` such that A + P^T P is normal (S4, appendix C); zeros beyond what it takes.

    Raises:
        ZooError: if the measure has no such correction of this rank.
    """
    measure = SAME.get(measure, measure)
    _check(measure, N)
    needed = MEASURES[measure]
    if needed is None or rank < needed:
        raise ZooError(
            f"measure '{measure}' is not normal plus low rank of rank {rank}: "
            + (f"it takes rank {needed}" if needed else "it has no such form")
        )
    n = np.arange(N, dtype=np.float64)
    P = np.zeros((rank, N))
    if measure == "legs":
        P[0] = np.sqrt(n + 0.5)
    elif measure == "legt":
        P[0, 1::2] = np.sqrt(n + 0.5)[1::2]
        P[1, 0::2] = np.sqrt(n + 0.5)[0::2]
    elif measure == "lagt":
        P[0] = math.sqrt(0.5)
    elif needed:
        factor = {"fout": 1.0, "fourier_decay": 0.5, "fourier2": 2.0}[measure]
        P[0] = math.sqrt(factor) * _fourier("fout", N)[1]
    return P


class NormalPlusLowRank(NamedTuple):
    """A = V (diag(w) - P P*) V* with one of each conjugate pair; arrays of complex128.

    Attributes:
        w: eigenvalues with imaginary part <= 0, ascending, ``[N/2]``.
        P: ``[rank, N/2]``.
        B: ``[N/2]``.
        V: ``[N, N/2]``.
    """

    w: np.ndarray
    P: np.ndarray
    B: np.ndarray
    V: np.ndarray


@functools.lru_cache(maxsize=64)
def nplr(measure: str, N: int, rank: int = 1, B_clip: float | None = 2.0) -> NormalPlusLowRank:
    """The normal plus low-rank form of a HiPPO matrix (S4, theorem 1).

    Args:
        measure: of :func:`transition`.
        N: order, even.
        rank: of the correction; what exceeds the measure's own is zero.
        B_clip: bound of the imaginary part of B; None for none.

    Raises:
        ZooError: if the measure has no such form, or N is odd.
    """
    if N % 2:
        raise ZooError(f"a state of conjugate pairs has an even size, got {N}")
    A, B = transition(measure, N)
    low = rank_correction(measure, N, rank)
    normal = A + low.T @ low  # a multiple of the identity plus a skew-symmetric matrix
    imag, vectors = np.linalg.eigh(-1j * normal)
    half = N // 2
    w, V = np.mean(np.diag(normal)) + 1j * imag[:half], vectors[:, :half].copy()
    if abs(w[-1].imag) < 1e-4:  # Fourier's constant is a pair with itself: (x0 + i x1) / sqrt 2
        V[:, -1] = 0
        V[:2, -1] = math.sqrt(0.5) * np.array([1, 1j])
    rotated = V.conj().T @ B
    if B_clip is not None:
        rotated = rotated.real + 1j * np.clip(rotated.imag, -B_clip, B_clip)
    return NormalPlusLowRank(w, low @ V.conj(), rotated, V)


def perturb_then_diagonalise(
    measure: str, N: int, perturbation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, eigenvectors and input of A + E (PTD, arXiv 2310.01698, section 4).

    HiPPO matrices are so far from normal that they cannot be diagonalised; with a small E they can.

    Args:
        measure: of :func:`transition`.
        N: order.
        perturbation: E ``[N, N]``, real or complex.

    Returns:
        lambda ``[N]``, V ``[N, N]`` and V^-1 B ``[N]``, complex128.

    Raises:
        ZooError: if E has another shape.
    """
    if perturbation.shape != (N, N):
        raise ZooError(
            f"the perturbation of a state of {N} is [{N}, {N}], got {list(perturbation.shape)}"
        )
    A, B = transition(measure, N)
    eigenvalues, V = np.linalg.eig(A + perturbation)
    return eigenvalues, V, np.linalg.solve(V, B.astype(V.dtype))


def diagonal(
    init: str,
    N: int,
    copies: int = 1,
    *,
    rank: int = 1,
    real_random: bool = False,
    real_scale: float = 1.0,
    imag_random: bool = False,
    imag_scale: float = 1.0,
    B_init: str = "constant",
    B_scale: float = 1.0,
    P_scale: float = 0.0,
    normalize: bool = False,
) -> StructuredSSM:
    r"""Initial values of diagonal models (S4D, section 4), under its code's names.

    Of n = 0 ... N/2 - 1, with real part -1/2 unless said otherwise:

    ========= ==================================================================
    lin       i pi n
    inv       i N/pi (N/(2n+1) - 1)
    inv2      i N/pi (N/(n+1) - 1)
    quad      i (1+2n)^2/pi
    legs      eigenvalues of the normal part of HiPPO-LegS, with its B not halved
    real      -(n+1)
    rand      i exp(normal)
    ========= ==================================================================

    The imaginary parts come out negative, as those of :func:`nplr`.

    Args:
        init: one of the above ("linear", "inverse", "quadratic", "hippo", "random" are the same).
        N: real size of the state, even.
        copies: S.
        rank: of P.
        real_random: real parts uniform in (-1, 0) instead.
        imag_random: n uniform in (0, N/2) instead.
        real_scale, imag_scale, B_scale, P_scale: factors; P is normal noise.
        B_init: "constant" (1), "random", "alternating" (1, -1, ...), "unit-cw" and "unit-ccw" (on
            the unit circle); of no effect for "legs".
        normalize: scale B to unit variance of the answer to a constant, for random C.

    Raises:
        ZooError: if a name is unknown or N is odd.
    """
    if N % 2:
        raise ZooError(f"a state of conjugate pairs has an even size, got {N}")
    half, n = N // 2, torch.arange(N // 2, dtype=torch.float64).expand(copies, -1)
    real = torch.full((copies, half), 0.5, dtype=torch.float64)
    if real_random:
        real = torch.rand(copies, half).double()
    if imag_random:
        n = half * torch.rand(copies, half).double()
    name = {"linear": "lin", "inverse": "inv", "inverse2": "inv2", "quadratic": "quad",
            "hippo": "legs", "random": "rand"}.get(init, init)  # fmt: skip
    if name == "lin":
        imag = math.pi * n
    elif name == "inv":
        imag = N / math.pi * (N / (1 + 2 * n) - 1)
    elif name == "inv2":
        imag = N / math.pi * (N / (1 + n) - 1)
    elif name == "quad":
        imag = (1 + 2 * n) ** 2 / math.pi
    elif name == "legs":
        imag = -torch.as_tensor(nplr("legs", N).w.imag).expand(copies, -1)
    elif name == "real":
        imag = torch.zeros_like(real)
        ladder = 1 + torch.arange(half, dtype=torch.float64)
        real = half * real if real_random else ladder.expand(copies, -1)
    elif name == "rand":
        imag = torch.randn(copies, half).double().exp()
    else:
        raise ZooError(
            f"init of a diagonal state matrix is lin, inv, inv2, quad, legs, real or rand, "
            f"not '{init}'"
        )
    A = torch.complex(-real_scale * real, -imag_scale * imag)
    B = B_scale * _input(name, B_init, N, copies)
    if normalize:
        B = B / (2 * (B / A).abs().square().sum(-1, keepdim=True)).sqrt()
    P = P_scale * torch.randn(rank, copies, half, dtype=torch.complex64).to(B.dtype)
    V = torch.eye(N, dtype=B.dtype)[:, :half].expand(copies, -1, -1)
    return StructuredSSM(A, P, B, V)


def _input(name: str, B_init: str, N: int, copies: int) -> Tensor:
    shape, n = (copies, N // 2), torch.arange(N // 2, dtype=torch.float64)
    if name == "legs":
        return torch.as_tensor(nplr("legs", N).B).expand(shape)
    if B_init == "constant":
        return torch.ones(shape, dtype=torch.complex128)
    if B_init == "random":
        return torch.randn(shape, dtype=torch.complex64).to(torch.complex128)
    if B_init == "alternating":
        B = 1 - 2 * (n % 2)
        return torch.complex(B, torch.zeros_like(B)).expand(shape)
    if B_init in ("unit-cw", "unit-ccw"):
        angle = 2 * math.pi / N * n * (-1 if B_init == "unit-cw" else 1)
        return torch.polar(torch.ones_like(angle), angle).expand(shape)
    raise ZooError(f"B_init is constant, random, alternating, unit-cw or unit-ccw, not '{B_init}'")


def initial_ssm(
    init: str | tuple[str, ...] | list[str], N: int, rank: int, copies: int, **init_args: Any
) -> StructuredSSM:
    """Initial A, P and B of ``copies`` models, under the names of S4's code.

    Args:
        init: "legs", "legt", "fourier" and other measures of :func:`nplr`; "diag-lin" and other
            names of :func:`diagonal` after "diag-" or, with noise in the low-rank part, "dplr-";
            "hippo" (legs and fourier), "diag" (diag-inv and diag-lin), "all"; or several of
            these, each for an equal part of the copies.
        N: real size of the state, even.
        rank: of P.
        copies: S.
        init_args: of :func:`diagonal` (``B_clip`` of :func:`nplr`).

    Raises:
        ZooError: if a name is unknown or the copies cannot be divided among them.
    """
    names = COMBINATIONS.get(init, (init,)) if isinstance(init, str) else tuple(init)
    if copies % len(names):
        raise ZooError(
            f"{copies} copies of the state matrix (n_ssm) cannot be divided among the "
            f"{len(names)} initialisations {', '.join(names)}"
        )
    parts = [_one(name, N, rank, copies // len(names), init_args) for name in names]
    return StructuredSSM(
        torch.cat([part.A for part in parts]),
        torch.cat([part.P for part in parts], dim=1),
        torch.cat([part.B for part in parts]),
        torch.cat([part.V for part in parts]),
    )


def _one(name: str, N: int, rank: int, copies: int, init_args: dict[str, Any]) -> StructuredSSM:
    kind, _, which = name.partition("-")
    if kind in ("diag", "dplr"):
        args = {"P_scale": 1.0} | init_args
        if kind == "diag":
            args["P_scale"] = 0.0
        return diagonal(which or "legs", N, copies, rank=rank, **args)
    form = nplr(name, N, rank, **init_args)
    w, P, B, V = (torch.as_tensor(array) for array in form)
    return StructuredSSM(
        w.expand(copies, -1),
        P[:, None].expand(-1, copies, -1),
        B.expand(copies, -1),
        V.expand(copies, -1, -1),
    )


def _check(measure: str, N: int) -> None:
    if measure not in MEASURES:
        known = ", ".join(sorted([*MEASURES, *SAME]))
        raise ZooError(f"measure is one of {known}, not '{measure}'")
    if N < 1 or (N % 2 and measure.startswith("fou")):
        raise ZooError(f"measure '{measure}' takes an even order of at least 2, got {N}")
