"""PTD's bases, the files that hold them, and what the optimizer does with S5's parameters."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

import zoo
from zoo.errors import ZooError
from zoo.layers.hippo import transition
from zoo.models.ssm._ptd_basis import (
    diagonalised,
    optimised_perturbation,
    ptd_basis,
    random_perturbation,
    read_basis,
)
from zoo.models.ssm._s5 import S5SSM, S5Layer, legs_basis, rename_flax

SMALL = dict(d_model=4, n_layers=1, ssm_size=8, blocks=2)


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


@pytest.mark.parametrize("model", ["s4_ptd_pathfinder", "s5_ptd_pathfinder"])
def test_the_first_kernel_is_that_of_hippos_perturbed_matrix(model):
    """With an exact dense recurrence beside it."""
    A = transition("legs", 4)[0] + optimised_perturbation(4)
    dt, B = 0.1, transition("legs", 4)[1]
    step = np.linalg.inv(np.eye(4) - dt / 2 * A)
    A_bar, B_bar = step @ (np.eye(4) + dt / 2 * A), step @ B * dt
    states = [B_bar]
    for _ in range(9):
        states.append(A_bar @ states[-1])
    C = np.array([0.3, -1.0, 0.5, 2.0])
    expected = (np.array(states) @ C).real
    _, V, Vinv = ptd_basis(4)
    if model.startswith("s4"):
        kernel = zoo.create_model(model, d_model=2, n_layers=1, d_state=4, disc="bilinear")
        kernel = kernel.model.layers[0].layer.layer.kernel
        with torch.no_grad():
            CB = (torch.from_numpy(C).to(V.dtype) @ V) * (Vinv @ torch.from_numpy(B).to(V.dtype))
            kernel.C.copy_(torch.view_as_real(CB))
            kernel.inv_dt.fill_(float(torch.expm1(torch.tensor(dt)).log()))  # softplus of it is dt
            found = kernel(10)[0][0, 0].numpy()
        np.testing.assert_allclose(found, 2 * expected, atol=1e-5)  # counted as pairs
        return
    ssm = S5SSM(1, ptd_basis(4), discretization="bilinear", conj_sym=False, B_init="legs")
    with torch.no_grad():
        ssm.C.copy_(torch.view_as_real(torch.from_numpy(C).to(V.dtype) @ V)[None])
        ssm.log_step.fill_(np.log(dt))
        ssm.D.zero_()
        found, last = ssm(torch.eye(10)[:1].T[None])
        more, _ = ssm(torch.zeros(1, 1, 1), last)
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-5)
    np.testing.assert_allclose(more[0, 0, 0], (A_bar @ states[-1] @ C).real, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "slow", "decays"),
    [("standard", True, False), ("BandCdecay", True, True), ("BfastandCdecay", False, True)],
)
def test_the_input_matrix_is_trained_as_the_option_says(option, slow, decays):
    model = zoo.create_model("s5_ptd_pathx", **SMALL, opt_config=option, ssm_lr=0.01)
    ssm = model.encoder.layers[0].seq
    groups = {id(p): group for group in model.weight_decay_groups(0.1) for p in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    assert groups[id(ssm.B)].get("lr") == (0.01 if slow else None)
    assert groups[id(ssm.B)]["weight_decay"] == (0.1 if decays else 0.0)
    for state in (ssm.Lambda_re, ssm.Lambda_im, ssm.log_step):
        assert groups[id(state)]["lr"] == 0.01 and groups[id(state)]["weight_decay"] == 0
    assert "lr" not in groups[id(ssm.C)] and groups[id(ssm.C)]["weight_decay"] == 0.1


@pytest.mark.parametrize("model", ["s5_ptd_pathfinder", "s5_ptd_retrieval"])
def test_arrays_of_flax_load(model):
    ours = zoo.create_model(model, **SMALL)
    state = {}
    for key, value in ours.state_dict().items():
        key = key.replace("layers.0.", "layers_0.").replace("decoder.output_transform", "decoder")
        key = key.replace("decoder.classifier.0", "decoder.layer1")
        key = key.replace("decoder.classifier.2", "decoder.layer2")
        if key.endswith("num_batches_tracked"):
            continue
        head, _, last = key.rpartition(".")
        collection = "batch_stats" if "running" in last else "params"
        last = last.replace("running_", "")
        if last == "weight":
            last, value = ("scale", value) if value.dim() == 1 else ("kernel", value.T)
        state["/".join([collection, *head.split("."), last])] = value
    loaded = ours.remap_state_dict(state)
    assert loaded.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(loaded[key], value)
    assert rename_flax({"layers_10/seq/B": torch.ones(1)}).keys() == {"layers.10.seq.B"}


def test_the_norm_is_where_it_is_wanted():
    x = torch.randn(2, 5, 4)
    for prenorm, gtrxl in ((True, False), (False, False), (True, True)):
        layer = S5Layer(S5SSM(4, legs_basis(4)), 4, "gelu", "layer", prenorm, gtrxl)
        with torch.no_grad():
            layer.norm.bias.fill_(0.5)
            y = layer.norm(x) if prenorm else x
            y = layer.seq(y)[0]
            y = layer.norm(y) if gtrxl else y
            expected = x + torch.nn.functional.gelu(y, approximate="tanh")
            torch.testing.assert_close(layer(x)[0], expected if prenorm else layer.norm(expected))


def test_wrong_settings():
    for settings, message in (
        ({"opt_config": "none"}, "opt_config is one of"),
        ({"blocks": 3}, "blocks divide"),
        ({"C_init": "zeros"}, "C_init is one of"),
        ({"activation": "glu"}, "activation is one of"),
    ):
        with pytest.raises(ZooError, match=message):
            zoo.create_model("s5_ptd_pathx", **SMALL | settings)
    with pytest.raises(ZooError, match="it sees the end"):
        S5SSM(2, legs_basis(4), bidirectional=True)(torch.ones(1, 3, 2), torch.zeros(1, 2))
