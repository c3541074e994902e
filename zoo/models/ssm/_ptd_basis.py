"""Bases of PTD: HiPPO-LegS plus a small dense matrix, diagonalised (arXiv 2310.01698, section 4).

HiPPO's own eigenvectors have a condition number of about 2^N. With E they have one below ten,
and the system stays nearly the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from zoo.errors import ZooError
from zoo.layers.hippo import perturb_then_diagonalise, transition
from zoo.models.ssm._s5 import Basis

#: Least distance of the real parts from zero that the search asks for, and the weight of that.
_MARGIN, _PUSH = 0.25, 5.0


@functools.lru_cache(maxsize=16)
def optimised_perturbation(
    N: int, gamma: float = 20.0, seed: int = 0, steps: int = 200, lr: float = 0.2
) -> np.ndarray:
    r"""E with well-conditioned eigenvectors V of A + E, and stable.

    .. math::
        \min_E\; 2 \log \kappa_2(V) + \gamma \|E\|_F / \|A\|_F
            + 5 \sum_n \max(0, Re \lambda_n + 1/4)

    The paper minimises kappa + gamma ||E||, its code kappa^2 + gamma ||E||_F over 3,000 to 100,000
    steps, and makes unstable modes stable by a change of sign afterwards. The logarithm needs 200
    steps; here the search itself keeps the modes stable.

    Args:
        N: order.
        gamma: price of the size of E.
        seed: of the start, 0.1 times uniform numbers.
        steps, lr: of Adam, its rate falling as a cosine.

    Returns:
        E ``[N, N]``, complex128.
    """
    with torch.device("cpu"), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        A = torch.from_numpy(transition("legs", N)[0]).to(torch.complex128)
        size = torch.linalg.matrix_norm(A)
        pairs = -0.1 * torch.rand(N, N, 2, generator=generator, dtype=torch.float64)
        pairs.requires_grad_()
        optimizer = torch.optim.Adam([pairs], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            E = torch.view_as_complex(pairs)
            eigenvalues, V = torch.linalg.eig(A + E)
            spread = torch.linalg.svdvals(V)
            loss = 2 * (spread[0] / spread[-1]).log()
            loss = loss + gamma * torch.linalg.matrix_norm(E) / size
            loss = loss + _PUSH * (eigenvalues.real + _MARGIN).relu().sum()
            (gradient,) = torch.autograd.grad(loss, pairs)
            if gradient.isfinite().all():  # equal eigenvalues have no derivative
                pairs.grad = gradient
                optimizer.step()
            schedule.step()
    return torch.view_as_complex(pairs.detach()).numpy()


def random_perturbation(N: int, size: float, seed: int = 0) -> np.ndarray:
    """A real Gaussian E of spectral norm ``size`` times that of A ``[N, N]``."""
    E = np.random.default_rng(seed).normal(size=(N, N))
    return E * size * np.linalg.norm(transition("legs", N)[0], 2) / np.linalg.norm(E, 2)


def diagonalised(E: np.ndarray) -> Basis:
    """The basis of A + E."""
    Lambda, V, _ = perturb_then_diagonalise("legs", len(E), E)
    return _basis(Lambda, V, np.linalg.inv(V))


def read_basis(path: str | Path) -> Basis:
    """A basis of the authors' files: ``Lam``, ``V`` and perhaps ``Vinv``, or the perturbation
    ``ptb`` of minus the matrix.

    Raises:
        ZooError: if the file cannot be read, or holds neither.
    """
    try:
        arrays = loadmat(str(path))
    except (OSError, ValueError, NotImplementedError) as error:
        raise ZooError(f"{path} cannot be read as a .mat file: {error}") from error
    if "ptb" in arrays:
        return diagonalised(-arrays["ptb"].astype(complex))
    if not {"Lam", "V"} <= set(arrays):
        names = ", ".join(name for name in arrays if not name.startswith("__"))
        raise ZooError(f"{path} holds {names}, expected Lam and V, or ptb")
    Lambda, V = arrays["Lam"], arrays["V"].astype(complex)
    Lambda = np.diagonal(Lambda) if Lambda.shape == V.shape else Lambda.reshape(-1)
    Vinv = arrays["Vinv"].astype(complex) if "Vinv" in arrays else np.linalg.inv(V)
    return _basis(Lambda, V, Vinv)


def ptd_basis(N: int, source: str | None = None) -> Basis:
    """The basis of order N.

    Args:
        N: order.
        source: a .mat file; None: a search, about a second for N = 64.

    Raises:
        ZooError: if the file is of another order.
    """
    if source is None:
        if torch.empty(0).is_meta:
            empty = torch.empty(N, N, dtype=torch.complex128)
            return Basis(empty[0], empty, empty)
        return diagonalised(optimised_perturbation(N))
    basis = read_basis(source)
    if len(basis.Lambda) != N:
        raise ZooError(f"{source} is a basis of order {len(basis.Lambda)}, expected {N}")
    return basis


def _basis(*arrays: np.ndarray) -> Basis:
    parts: list[Tensor] = [torch.as_tensor(np.ascontiguousarray(a, complex)) for a in arrays]
    return Basis(*parts)
