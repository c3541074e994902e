import pytest
import torch

from zoo.checkpoints import save_state_dict
from zoo.decoding import generate
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm, load_causal_lm
from zoo.models.ssm._h3_kernels import DiagonalKernel, ShiftKernel
from zoo.models.ssm.h3 import H3, H3LM

KINDS = {
    "recurrent": {"ssm_cfg": {"d_state": 8}},
    "hybrid": {"attn_layer_idx": [1], "attn_cfg": {"num_heads": 4, "rotary_emb_dim": 4},
               "ssm_cfg": {"d_state": 8, "disc": "zoh"}},
    "heads": {"ssm_cfg": {"d_state": 4, "head_dim": 4}},
}  # fmt: skip


def small(kind: str) -> H3LM:
    torch.manual_seed(0)
    return H3LM(d_model=16, n_layer=3, vocab_size=40, **KINDS[kind]).eval()


def recurrences(model: H3, u: torch.Tensor) -> torch.Tensor:
    """The layer by its definition: two recurrences and a matrix for each head, in float64."""
    q, k, v = (f(u) for f in (model.q_proj, model.k_proj, model.v_proj))
    shift, diagonal = model.ssm_k_kernel.kernel, model.kernel.kernel
    dt = diagonal.log_dt.exp()[:, None]
    A = torch.complex(-diagonal.inv_A_real.exp(), diagonal.A_imag)
    B, C = (torch.view_as_complex(M) for M in (diagonal.B, diagonal.C[0]))
    A_bar, B_bar = (1 + dt * A / 2) / (1 - dt * A / 2), B * dt / (1 - dt * A / 2)
    heads, P = len(model.D), model.head_dim
    places = u.new_zeros(len(u), *shift.B.shape)
    state = torch.zeros(len(u), heads, P, P, A.shape[1], dtype=A_bar.dtype)
    outputs = []
    for t in range(u.shape[1]):
        places = places.roll(1, dims=-1)
        places[..., 0] = 0
        places = places + shift.B * k[:, t, :, None]
        key = (shift.C[0] * places).sum(-1) + model.ssm_k_D * k[:, t]
        key, value, query = (x.unflatten(-1, (heads, P)) for x in (key, v[:, t], q[:, t]))
        kv = key[..., None] * value[..., None, :]  # [B, H, P, P]
        state = A_bar[:, None, None] * state + B_bar[:, None, None] * kv[..., None]
        read = 2 * (C[:, None, None] * state).sum(-1).real + model.D[:, None, None] * kv
        y = torch.einsum("bhij,bhi->bjh", read, query)  # value by value, as the authors have it
        outputs.append(y.flatten(1))
    return model.output_linear(torch.stack(outputs, dim=1))


@pytest.mark.parametrize("head_dim", [1, 3])
def test_the_layer_is_two_recurrences_and_two_gates(head_dim):
    torch.manual_seed(0)
    model = H3(6, d_state=8, head_dim=head_dim).double()
    with torch.no_grad():
        model.ssm_k_kernel.kernel.B += 0.3 * torch.randn(6, 8)
        model.kernel.kernel.B += 0.3 * torch.randn(6 // head_dim, 4, 2)
    u = torch.randn(2, 12, 6, dtype=torch.float64)
    torch.testing.assert_close(model(u), recurrences(model, u))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_equal_one_pass(kind):
    model, ids = small(kind), torch.randint(40, (2, 23))
    whole = model(ids).logits
    cache = model.allocate_cache(2)
    parts = [model(part, cache=cache).logits for part in ids.split([1, 5, 12, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert cache.constant_size == (kind != "hybrid")


def test_a_cache_is_cloned_selected_and_stacked():
    model, ids = small("recurrent"), torch.randint(40, (2, 6))
    cache = model(ids, use_cache=True).cache
    turned = type(cache).stack([cache.select([1]), cache.clone().select([0])])
    found = model(ids[[1, 0], :1], cache=turned).logits
    torch.testing.assert_close(found, model(ids[:, :1], cache=cache).logits[[1, 0]])
    with pytest.raises(ZooError, match="cut back"):
        cache.truncate(2)


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_decoding_writes_what_full_passes_choose(kind):
    model, ids = small(kind), torch.randint(40, (1, 5))
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1:, :40].argmax(-1)], dim=1)
    assert generate(model, ids, method="plain", max_new_tokens=6).sequences[0].tolist() == (
        expected[0].tolist()
    )


def test_export_and_load(tmp_path):
    model, ids = small("hybrid"), torch.randint(40, (1, 5))
    export_causal_lm(model, None, tmp_path / "kept")
    torch.testing.assert_close(load_causal_lm(tmp_path / "kept")(ids).logits, model(ids).logits)


def test_files_of_all_ages_load(tmp_path):
    """Older ones have other names, and the norms after the additions."""
    model = small("hybrid")
    ours = model.state_dict()
    names = {f"backbone.layers.{i}.norm1": f"s4seq.encoder.layers.{i - 1}.norm2" for i in (1, 2)}
    names |= {f"backbone.layers.{i}.norm2": f"s4seq.encoder.layers.{i}.norm1" for i in range(3)}
    names |= {"backbone.layers.0.norm1": "s4seq.encoder.norm", "backbone.ln_f":
              "s4seq.encoder.layers.2.norm2", "backbone.embeddings.word_embeddings": "embedding",
              "backbone": "s4seq.encoder"}  # fmt: skip
    old = {}
    for name, tensor in ours.items():
        start = next((s for s in names if name.startswith(f"{s}.")), None)
        old_name = name if start is None else names[start] + name[len(start) :]
        old["model." + old_name.replace("in_proj", "Wqkv")] = tensor
    found = model.remap_state_dict(old)
    assert found.keys() == ours.keys()
    assert all(found[name] is tensor for name, tensor in ours.items())
    again = {n.replace("in_proj", "Wqkv"): t.clone() for n, t in ours.items()}
    save_state_dict(again, tmp_path / "model.safetensors")
    assert model.remap_state_dict(again).keys() == ours.keys()


def test_ssm_parameters_do_not_decay():
    kept = small("hybrid").no_weight_decay()
    start = "backbone.layers.0.mixer."
    assert {n.removeprefix(start) for n in kept if n.startswith(start)} == {
        "ssm_k_kernel.kernel.B", "kernel.kernel.B", "kernel.kernel.log_dt",
        "kernel.kernel.inv_A_real", "kernel.kernel.A_imag",
    }  # fmt: skip


def test_initial_values():
    torch.manual_seed(0)
    shift, kernel = ShiftKernel(3, 5), DiagonalKernel(4, 8, dt_min=0.01, dt_max=0.02)
    torch.testing.assert_close(shift(), shift.C[0])  # B is the first unit vector
    assert shift.C.abs().max() <= 1 / 5**0.5
    assert kernel.inv_A_real.exp().eq(0.5).all()
    torch.testing.assert_close(kernel.A_imag[1], torch.pi * torch.arange(4))
    assert ((kernel.log_dt.exp() >= 0.0099) & (kernel.log_dt.exp() <= 0.0201)).all()
    inverse = DiagonalKernel(4, 8, measure="diag-inv").A_imag[0]
    torch.testing.assert_close(inverse[0], torch.tensor(8 / torch.pi * 7))
    model = H3LM(d_model=64, n_layer=2, vocab_size=40)
    first, last = (
        getattr(model.backbone.layers[0].mlp, n).weight.std().item() for n in ("fc1", "fc2")
    )
    assert first == pytest.approx(0.02, rel=0.05) and last == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("settings, words", [
    (dict(head_dim=4), "head_dim 4"), (dict(disc="dss"), "disc"), (dict(mode="nplr"), "mode"),
    (dict(d_state=7), "even"), (dict(n_ssm=4), "n_ssm"), (dict(measure="legs"), "measure"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ZooError, match=words):
        H3(6, **settings)


def test_cut_kernels_have_no_state():
    model = H3(6, d_state=4, l_max=3)
    with pytest.raises(ZooError, match="l_max"):
        model(torch.randn(1, 4, 6), model.allocate_state(1))
    with pytest.raises(ZooError, match="one of input_ids"):
        small("recurrent")()
