"""S4 and S4D beyond what all models are tested for: checkpoints of all ages, groups, states."""

import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.models.ssm._backbone import rename_s4

SMALL = dict(d_model=8, n_layers=2, d_state=8, l_max=16)


def small(name: str = "s4_cifar", **more) -> torch.nn.Module:
    torch.manual_seed(0)
    return zoo.create_model(name, **(SMALL | dict(d_input=1, dt_transform="exp") | more)).eval()


def aged(state: dict, version: int) -> dict:
    """As the authors' older code would have written the weights."""
    old = {}
    for key, value in state.items():
        if key.startswith("decoder."):
            key = key.replace("decoder.", "decoder.0.")
        if version < 4:
            key = key.replace("layer.layer.", "layer.").replace("kernel.", "kernel.kernel.")
            key = key.replace("l_kernel", "L").replace("inv_dt", "log_dt")
            if key.endswith("log_dt"):
                value = value[:, 0]
            if key.endswith("A_imag"):
                key, value = key.replace("A_imag", "w_imag"), -value
            key = key.replace("A_real", "inv_w_real" if version == 3 else "log_w_real")
        if version < 3:
            if key.endswith(".B"):
                value = value[0]
            if key.endswith(".L"):
                key, value = key[:-1] + "omega", torch.zeros(int(value) // 2 + 1, 2)
        old[key] = value
    if version == 1:
        for key in [k for k in old if k.endswith("log_w_real")]:
            stem = key.removesuffix("log_w_real")
            real, imag = -old.pop(key).exp(), old.pop(stem + "w_imag")
            old[stem + "w"] = torch.stack([real, imag], -1)
            old[stem + "Q"] = old[stem + "P"].clone()
    return old


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_checkpoints_of_all_versions_load(version, tmp_path):
    model, x = small(), torch.randn(2, 9, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    torch.save(aged(model.state_dict(), version), tmp_path / "old.pt")
    loaded = small()
    zoo.load_pretrained(loaded, str(tmp_path / "old.pt"))
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_second_factor_of_its_own_is_refused():
    state = aged(small().state_dict(), 1)
    key = next(k for k in state if k.endswith(".Q"))
    state[key] = state[key] * torch.tensor([1.0, -1.0])  # the conjugate is the same
    rename_s4(state)
    state[key] = state[key] + 1
    with pytest.raises(ZooError, match="has no parameters here"):
        rename_s4(state)


def test_another_rank_is_one_line(tmp_path):
    torch.save(small(rank=2).state_dict(), tmp_path / "rank2.pt")
    with pytest.raises(ZooError, match=r"P"):
        zoo.load_pretrained(small(), str(tmp_path / "rank2.pt"))


def test_the_minimal_network_loads(tmp_path):
    """Its keys and shapes, by hand; its kernel, by its formula."""
    model = small("s4d_minimal", n_layers=1)
    layer = model.model.layers[0].layer
    state = {
        "encoder.weight": model.encoder.weight,
        "encoder.bias": model.encoder.bias,
        "s4_layers.0.D": torch.randn(8),
        "s4_layers.0.kernel.log_dt": torch.randn(8) - 3,
        "s4_layers.0.kernel.C": torch.randn(8, 4, 2),
        "s4_layers.0.kernel.log_A_real": torch.randn(8, 4),
        "s4_layers.0.kernel.A_imag": torch.randn(8, 4),
        "s4_layers.0.output_linear.0.weight": torch.randn(16, 8, 1),
        "s4_layers.0.output_linear.0.bias": torch.randn(16),
        "norms.0.weight": torch.randn(8),
        "norms.0.bias": torch.randn(8),
        "decoder.weight": torch.randn(10, 8),
        "decoder.bias": torch.randn(10),
    }
    torch.save(state, tmp_path / "minimal.pt")
    zoo.load_pretrained(model, str(tmp_path / "minimal.pt"))
    kernel = {k.rpartition(".")[2]: v for k, v in state.items() if ".kernel." in k}
    A = torch.complex(-kernel["log_A_real"].exp(), kernel["A_imag"])
    dt_A = A * kernel["log_dt"].exp()[:, None]
    C = torch.view_as_complex(kernel["C"]) * (dt_A.exp() - 1) / A
    K = 2 * torch.einsum("hn,hnl->hl", C, (dt_A[..., None] * torch.arange(9)).exp()).real
    torch.testing.assert_close(layer.layer.kernel(9)[0][0], K, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        layer.output_linear[0].weight, state["s4_layers.0.output_linear.0.weight"][..., 0]
    )


def test_kernels_have_rates_of_their_own_and_no_decay():
    model = small(lr={"A": 0.001, "B": 0.002, "dt": None})
    groups = {
        (g.get("lr"), g["weight_decay"]): g["params"] for g in model.weight_decay_groups(0.05)
    }
    assert set(groups) == {(None, 0.05), (0.001, 0.0), (0.002, 0.0), (None, 0.0)}
    assert len(groups[0.001, 0.0]) == 2 * 3  # A's parts and P of both layers
    assert len(groups[0.002, 0.0]) == len(groups[None, 0.0]) == 2
    every = [id(p) for group in groups.values() for p in group]
    assert sorted(every) == sorted(map(id, model.parameters()))


def test_padding_has_no_influence():
    for settings in ({}, dict(decoder="last", bidirectional=False), dict(paired=True)):
        model = small(**settings)
        shape = (2, 2) if "paired" in settings else (2,)
        x, lengths = torch.randn(*shape, 9, 1), torch.full(shape, 6)
        cut = model(x[..., :6, :], lengths)
        torch.testing.assert_close(model(x, lengths), cut, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x[..., :6, :]), cut, rtol=1e-4, atol=1e-5)


def test_pairs_are_compared_in_order():
    model = small(paired=True)
    x = torch.randn(3, 2, 9, 1)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
    assert (model(x.flip(1)) - y).abs().max() > 1e-3


def test_a_clone_of_the_cache_goes_on_alone():
    torch.manual_seed(0)
    model = zoo.create_model("s4_wt103", d_model=8, n_layers=1, d_state=8, l_max=16).eval()
    x = torch.randn(2, 8, 8)
    with torch.no_grad():
        whole, cache = model(x), model.allocate_cache(2)
        model(x[:, :5], cache=cache)
        kept = cache.clone()
        model(torch.randn(2, 3, 8), cache=cache)
        rest = model(x[:, 5:], cache=kept.select([1, 0]))
        assert not torch.allclose(rest, whole[:, 5:])
        torch.testing.assert_close(model(x[:, 5:], cache=kept), whole[:, 5:], rtol=1e-4, atol=1e-5)
    assert cache.constant_size and len(cache.layers) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(vocab_size=5), "give one of them"),
        (dict(d_input=None), "give one of them"),
        (dict(norm="group"), "not 'group'"),
        (dict(decoder="max"), "not 'max'"),
    ],
)
def test_what_it_refuses(settings, says):
    with pytest.raises(ZooError, match=says):
        small(**settings)


def test_longer_than_the_kernel_is_one_line():
    with pytest.raises(ZooError, match="16 steps long"):
        small()(torch.zeros(1, 17, 1))


@pytest.mark.parametrize("name", ["s4_listops", "s4_ptd_listops", "s4d_listops"])
def test_a_blocks_output_layer_may_be_a_convolution(name):
    model = zoo.create_model(name, d_model=4, n_layers=1, d_state=4)
    state = {
        key: value[..., None] if key.endswith("output_linear.0.weight") else value
        for key, value in model.state_dict().items()
    }
    assert any(value.dim() == 3 for key, value in state.items() if "output_linear" in key)
    model.load_state_dict(model.remap_state_dict(state))
