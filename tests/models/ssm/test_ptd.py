"""PTD's kernels against a dense recurrence, and what the optimizer does with S5's parameters."""

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.layers.hippo import transition
from zoo.models.ssm._ptd_basis import optimised_perturbation, ptd_basis
from zoo.models.ssm._s5 import S5SSM, rename_flax

SMALL = dict(d_model=4, n_layers=1, ssm_size=8, blocks=2)


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


def test_wrong_settings():
    for settings, message in (({"opt_config": "none"}, "opt_config is"), ({"blocks": 3}, "blocks")):
        with pytest.raises(ZooError, match=message):
            zoo.create_model("s5_ptd_pathx", **SMALL | settings)
    with pytest.raises(ZooError, match="one of vocab_size tokens"):
        zoo.create_model("s5_ptd_pathx", **SMALL, vocab_size=3)


def test_states_of_the_standalone_networks_load():
    model = zoo.create_model("s4_ptd_robust", d_model=4, n_layers=1, d_state=2)
    shapes = {
        "encoder.weight": (4, 3), "encoder.bias": (4,),
        "norms.0.weight": (4,), "norms.0.bias": (4,),
        "s4_layers.0.kernel.log_dt": (4,), "s4_layers.0.kernel.log_A_real": (4, 2),
        "s4_layers.0.kernel.A_imag": (4, 2), "s4_layers.0.kernel.B": (4, 2, 2),
        "s4_layers.0.kernel.C": (4, 2, 2), "s4_layers.0.output_linear.0.weight": (8, 4, 1),
        "s4_layers.0.output_linear.0.bias": (8,), "decoder.weight": (10, 4), "decoder.bias": (10,),
    }  # fmt: skip
    state = {key: torch.randn(shape) for key, shape in shapes.items()}
    model.load_state_dict(model.remap_state_dict(state))
    block, theirs = model.model.layers[0], "s4_layers.0.kernel."
    with torch.no_grad():
        dt, A, B, C = block.layer.layer.kernel.continuous()
    torch.testing.assert_close(dt[:, 0], state[theirs + "log_dt"].exp())
    real, imag = state[theirs + "log_A_real"].exp(), state[theirs + "A_imag"]
    torch.testing.assert_close(A, torch.complex(-real, -imag))
    torch.testing.assert_close(torch.view_as_real(B[0]), state[theirs + "B"])
    torch.testing.assert_close(torch.view_as_real(C[0]), state[theirs + "C"])
    torch.testing.assert_close(block.norm.norm.bias, state["norms.0.bias"])
    linear = state["s4_layers.0.output_linear.0.weight"][..., 0]
    torch.testing.assert_close(block.layer.output_linear[0].weight, linear)
    with pytest.raises(RuntimeError):  # another form has D, and no B
        zoo.create_model("s4_ptd_ablation", d_model=4, n_layers=1, d_state=2).load_state_dict(
            model.remap_state_dict(state)
        )
