"""PTD's bases, and the files that hold them."""

import math

import numpy as np
import pytest
import torch
from scipy.io import savemat

from zoo.errors import ZooError
from zoo.layers.hippo import transition
from zoo.models.ssm._ptd_basis import (
    diagonalised,
    optimised_perturbation,
    ptd_basis,
    random_perturbation,
    read_basis,
)


def test_without_memory_a_basis_has_only_its_shape():
    with torch.device("meta"):
        basis = ptd_basis(8)
    assert [tuple(part.shape) for part in basis] == [(8,), (8, 8), (8, 8)]
    assert all(part.is_meta for part in basis)


def test_the_search_finds_a_small_perturbation_with_stable_modes():
    A, E = transition("legs", 16)[0], optimised_perturbation(16)
    basis = diagonalised(E)
    assert np.linalg.cond(basis.V) < 6
    assert np.linalg.norm(E) < 0.2 * np.linalg.norm(A)
    assert basis.Lambda.real.max() < -0.1
    again = (basis.V * basis.Lambda) @ basis.Vinv
    np.testing.assert_allclose(again, A + E, rtol=0, atol=1e-9 * np.abs(A).max())


def test_a_random_perturbation_has_the_size_that_is_asked_for():
    E = random_perturbation(16, 0.01, seed=1)
    ratio = np.linalg.norm(E, 2) / np.linalg.norm(transition("legs", 16)[0], 2)
    assert ratio == pytest.approx(0.01)


def test_files_of_the_authors_give_one_basis(tmp_path):
    E = random_perturbation(4, 0.05)
    Lambda, V, Vinv = (part.numpy() for part in diagonalised(E))
    files = {
        "matrix": {"Lam": np.diag(Lambda), "V": V, "Vinv": Vinv},
        "column": {"Lam": Lambda[:, None], "V": V},
        "perturbation": {"ptb": -E},
    }
    for name, arrays in files.items():
        savemat(tmp_path / f"{name}.mat", arrays)
        basis = read_basis(tmp_path / f"{name}.mat")
        again = (basis.V * basis.Lambda) @ basis.Vinv  # whatever the order of the modes
        np.testing.assert_allclose(again, transition("legs", 4)[0] + E, rtol=0, atol=1e-9)
    with pytest.raises(ZooError, match="order 4, expected 8"):
        ptd_basis(8, str(tmp_path / "matrix.mat"))
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(ZooError, match="holds x, expected Lam and V, or ptb"):
        read_basis(tmp_path / "other.mat")
    with pytest.raises(ZooError, match=r"cannot be read as a \.mat file"):
        read_basis(tmp_path / "none.mat")


def test_the_search_lowers_its_objective():
    """Three steps of Adam on the objective, written anew."""
    A = torch.from_numpy(transition("legs", 4)[0]).to(torch.complex128)
    start = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = (-0.1 * start).requires_grad_()
    adam = torch.optim.Adam([pairs])
    for step in range(3):
        adam.param_groups[0]["lr"] = 2.0 * (1 + math.cos(math.pi * step / 3))
        E = torch.view_as_complex(pairs)
        eigenvalues, V = torch.linalg.eig(A + E)
        price = 3 * E.abs().square().sum().sqrt() / A.abs().square().sum().sqrt()
        unstable = (eigenvalues.real + 0.25).clamp(min=0).sum()
        pushed = float(unstable.detach())
        adam.zero_grad()
        (2 * torch.linalg.cond(V).log() + price + 5 * unstable).backward()
        adam.step()
    found = optimised_perturbation(4, gamma=3.0, seed=1, steps=3, lr=4.0)
    assert pushed > 0, "a mode must be there to push"
    expected = torch.view_as_complex(pairs.detach()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
