from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.data import Passkey
from zoo.decoding import generate
from zoo.errors import ZooError
from zoo.layers.mamba2 import Mamba2
from zoo.models.language._causal_lm import load_causal_lm, save_causal_lm
from zoo.models.recurrent.stuffed_mamba import (
    MitigatedMamba2,
    collapse_length,
    mitigated,
    passkey_capacity,
    position_losses,
    retrieved,
    state_norms,
    state_size,
    training_length,
)
from zoo.proofs.recurrent.stuffed_mamba import Collapse, Retrieval, chains, difference_of_states

SMALL = dict(d_state=8, headdim=8, chunk_size=16)
FORMS = {
    "forget": dict(a_mult=2.0, b_mult=0.5),
    "clip": dict(max_norm=0.1),
    "window": dict(window=5),
    "window of one": dict(window=1),
}


def mixers(**options):
    torch.manual_seed(0)
    plain = Mamba2(16, **SMALL).double()
    with torch.no_grad():
        plain.dt_bias += 2  # long steps, so that states differ
    own = MitigatedMamba2(16, **SMALL, **options).double()
    own.load_state_dict(plain.state_dict(), strict=False)
    return plain, own, torch.randn(2, 37, 16, dtype=torch.float64)


def small_lm(**more):
    torch.manual_seed(0)
    settings = dict(d_model=16, n_layer=2, vocab_size=21, ssm_cfg={"layer": "Mamba2", **SMALL})
    return zoo.create_model("mamba2_130m", **settings | more).eval()


def test_no_mitigation_is_mamba2():
    plain, own, x = mixers()
    assert torch.equal(own(x), plain(x))


@pytest.mark.parametrize("r", [1, 16, 100])
def test_a_window_is_the_difference_of_two_states(r):
    plain, own, _ = mixers(window=r)
    x = torch.randn(2, 230, 16, dtype=torch.float64)
    exact = difference_of_states(plain, x, r)
    assert float((own(x) - exact).detach().abs().max() / exact.detach().abs().max()) < 1e-12
    single = own.float()(x.float())
    assert float((single - exact).abs().max() / exact.abs().max()) < 1e-4
    if r < 100:  # a hundred steps hold all that is not forgotten
        assert float((plain.double()(x) - exact).abs().max()) > 1e-3


def test_a_window_of_one_layer_is_a_restart_and_of_two_is_not():
    """With one layer and no convolution; a second layer's inputs are of windows of their own."""
    torch.manual_seed(0)
    layers = [MitigatedMamba2(16, window=6, d_conv=1, **SMALL).double() for _ in range(2)]
    plain = [Mamba2(16, d_conv=1, **SMALL).double() for _ in range(2)]
    for own, other in zip(layers, plain, strict=True):
        own.load_state_dict(other.state_dict())
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    once, again = layers[0](x)[:, -1], plain[0](x[:, -6:])[:, -1]
    torch.testing.assert_close(once, again)
    twice, restarted = layers[1](layers[0](x))[:, -1], plain[1](plain[0](x[:, -6:]))[:, -1]
    assert float((twice - restarted).abs().max()) > 1e-8


def test_the_multipliers_are_a_power_and_a_factor():
    plain, own, x = mixers(a_mult=2.0, b_mult=0.5)
    with torch.no_grad():
        plain.A_log += math.log(2)
    a_only, _, _ = mixers()
    with torch.no_grad():
        a_only.A_log += math.log(2)
    _, power, _ = mixers(a_mult=2.0)
    torch.testing.assert_close(power(x), a_only(x))
    # what is not the skip connection is linear in B
    for mixer in (plain, own):
        mixer.norm = None
    z = torch.zeros_like(plain.D)
    plain.D.data, own.D.data = z, z.clone()
    torch.testing.assert_close(own(x), plain(x) / 2)


def test_clipping_bounds_every_state_and_a_wide_bound_does_nothing():
    plain, own, x = mixers(max_norm=0.1)
    state, norms = own.allocate_state(2), []
    with torch.no_grad():
        for t in range(x.shape[1]):
            own(x[:, t : t + 1], state=state)
            norms.append(torch.linalg.vector_norm(state.ssm, dim=(2, 3)))
    found = torch.stack(norms)
    assert float(found.max()) <= 0.1 + 1e-8
    assert float((found > 0.0999).double().mean()) > 0.1
    _, wide, _ = mixers(max_norm=1e6)
    torch.testing.assert_close(wide(x), plain(x))


def test_two_clipped_steps_by_hand():
    mixer = MitigatedMamba2(1, d_state=1, headdim=2, d_conv=1, max_norm=5.0)
    mixer.A_log.data.fill_(math.log(math.log(2)))  # alpha is 1/2 where dt is 1
    mixer.dt_bias.data.fill_(math.log(math.e - 1))
    mixer.D.data.zero_()
    mixer.norm = None
    xBC = torch.tensor([[[6.0, 8.0, 1.0, 1.0], [0.0, 4.0, 1.0, 2.0]]])
    z = torch.full((1, 2, 2), 50.0)  # silu(z) is z
    y = mixer._scan(xBC, torch.zeros(1, 2, 1), z, None, None) / 50
    # (6, 8) has norm 10 and becomes (3, 4); half of it and (0, 4) is (1.5, 6), of norm 6.1847
    scale = 5 / math.hypot(1.5, 6)
    expected = torch.tensor([[[3.0, 4.0], [2 * 1.5 * scale, 2 * 6 * scale]]])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("form", FORMS)
def test_parts_and_steps_are_one_function(form):
    _, own, x = mixers(**FORMS[form])
    whole = own(x)
    with torch.no_grad():
        state = own.allocate_state(2)
        parts = [own(part, state=state) for part in x.split([1, 3, 20, 1, 1, 11], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        copied = state.clone().select([1, 0])
        torch.testing.assert_close(own(x[[1, 0]], state=copied), own(x, state=state)[[1, 0]])


@pytest.mark.parametrize("form", FORMS)
def test_generation_is_the_full_pass(form, tmp_path):
    plain = small_lm()
    model = mitigated(plain, **FORMS[form])
    prompt = torch.randint(21, (1, 12))
    out = generate(model, prompt, "plain", max_new_tokens=8).sequences
    with torch.no_grad():
        logits = model(out).logits[:, 11:-1, :21]
    assert logits.argmax(-1).tolist() == out[:, 12:].tolist()
    # what is written says which mitigation it has, and is read again with it
    model.save_pretrained(tmp_path)
    again = load_causal_lm(tmp_path)
    assert again.config.ssm_cfg["layer"] == "MitigatedMamba2"
    assert {k: again.config.ssm_cfg[k] for k in FORMS[form]} == FORMS[form]
    assert torch.equal(again(prompt).logits, model(prompt).logits)


def test_weights_are_shared_and_stay_tied():
    plain = small_lm()
    model = mitigated(plain, window=4)
    assert model.lm_head.weight is model.backbone.embedding.weight is plain.lm_head.weight
    assert model.backbone.layers[0].mixer.A_log is plain.backbone.layers[0].mixer.A_log
    assert plain.config.ssm_cfg["layer"] == "Mamba2"
    assert not model.training


def test_a_model_of_transformers_is_read_and_mitigated(tmp_path):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=21, hidden_size=16, num_hidden_layers=1, state_size=8, head_dim=8, num_heads=4,
        n_groups=1, chunk_size=8,
    )  # fmt: skip
    Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path)
    ids = torch.randint(21, (1, 30))
    wide = mitigated(model, window=30)
    torch.testing.assert_close(wide(ids).logits, model(ids).logits)
    assert not torch.allclose(mitigated(model, window=2)(ids).logits, model(ids).logits)


def test_thresholds_of_each_head():
    plain, ids = small_lm(), torch.randint(21, (3, 32))
    norms = state_norms(plain, ids, every=4)
    assert norms.shape == (2, 3, 4, 8)
    cache = plain.allocate_cache(3)
    with torch.no_grad():
        plain(ids, cache=cache)
    last = cache.layers[1].ssm.flatten(2).norm(dim=-1)
    torch.testing.assert_close(norms[1, :, :, -1], last)
    limits = norms.amax((1, 3)) / 2
    model = mitigated(plain, max_norm=limits)
    assert torch.equal(model.backbone.layers[1].mixer.max_norm, limits[1])
    assert model.config.ssm_cfg["max_norm"] == pytest.approx(float(limits.mean()))
    assert bool((state_norms(model, ids, every=1).amax((1, 3)) <= limits * 1.00001).all())
    with pytest.raises(RuntimeError, match="max_norm"):
        model.load_state_dict(plain.state_dict())


def test_losses_of_positions():
    model, ids = small_lm(), torch.randint(21, (2, 23))
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    exact = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    for part in (1, 5, 22, 100):
        found = position_losses(model, ids, part)
        assert found.dtype == torch.float64 and found.shape == (2, 22)
        torch.testing.assert_close(found.flatten(), exact.double(), atol=1e-5, rtol=1e-5)


def test_the_length_of_collapse():
    losses = torch.tensor([[3.0, 1.0, 2.0, 2.0, 1.9, 1.9, 2.6, 2.6, 9.0]])
    assert collapse_length(losses, bucket=2, margin=0.5) == 6
    assert collapse_length(losses, bucket=2, margin=0.75) is None
    assert collapse_length(-losses, bucket=2, margin=0.05) == 4
    with pytest.raises(ZooError, match="9 positions, expected 10 or more"):
        collapse_length(losses, bucket=10)


def test_a_passkey_is_found_where_each_token_is_the_likeliest():
    model = small_lm()
    ids = torch.randint(21, (1, 20))
    text = generate(model, ids, "plain", max_new_tokens=3).sequences[0]
    mask = torch.zeros(23)
    mask[-3:] = 1
    for part in (4, 1024):
        assert retrieved(model, text, mask, part)
        for place in (-3, -1):
            wrong = text.clone()
            wrong[place] = (wrong[place] + 1) % 21
            assert not retrieved(model, wrong, mask, part)


def test_sizes_and_the_papers_fits():
    with torch.device("meta"):
        small, large = zoo.create_model("mamba2_130m"), zoo.create_model("stuffed_mamba_370m")
    assert state_size(small) == 4_718_592
    assert state_size(large) == 12_582_912
    assert training_length(12.9e6) == pytest.approx(62_250, rel=1e-3)
    assert training_length(0) == 0
    assert passkey_capacity(12.9e6) == pytest.approx(258_400, rel=2e-2)
    assert passkey_capacity(4.8e6) == pytest.approx(15_700, rel=2e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=0), "window is 0, expected a whole number of 1 or more"),
        (dict(window=2.5), "window is 2.5"),
        (dict(a_mult=0.5), "a_mult is 0.5, expected 1 or more"),
        (dict(b_mult=0.0), "b_mult is 0.0, expected above 0"),
        (dict(b_mult=1.5), "b_mult is 1.5"),
        (dict(max_norm=0.0), "max_norm is 0.0, expected above 0"),
        (dict(window=4, max_norm=1.0), "max_norm and window are set together"),
        (dict(window=4, b_mult=0.5), "a_mult, b_mult and window are set together"),
        (dict(eig_range="pm1"), "eig_range is 'pm1', expected '01'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ZooError, match=message):
        MitigatedMamba2(16, **SMALL, **options)


def test_models_and_caches_that_do_not_fit_are_refused():
    plain = small_lm()
    model = mitigated(plain, window=4)
    with pytest.raises(ZooError, match="a model of MitigatedMamba2 layers"):
        mitigated(model, a_mult=2)
    with pytest.raises(ZooError, match="a model of Mamba1 layers"):
        mitigated(zoo.create_model("mamba_130m", d_model=16, n_layer=1, vocab_size=8), a_mult=2)
    with pytest.raises(ZooError, match="this is Linear"):
        mitigated(torch.nn.Linear(2, 2), a_mult=2)
    with pytest.raises(ZooError, match=r"max_norm is \(3,\), expected one number or \(2, 4\)"):
        mitigated(plain, max_norm=torch.ones(3))
    ids = torch.randint(21, (1, 5))
    for reader, cache in ((model, plain), (mitigated(plain, max_norm=1), model)):
        with pytest.raises(ZooError, match="only with the mitigation"):
            reader(ids, cache=cache.allocate_cache(1))
    with pytest.raises(ZooError, match="no layer keeps a Mamba-2 state"):
        state_norms(model, ids, every=1)
    with pytest.raises(ZooError, match="5 tokens, expected 16 or more"):
        state_norms(plain, ids)
    with pytest.raises(ZooError, match="give one document a row"):
        model(ids, seq_idx=torch.zeros(1, 5, dtype=torch.int32))
    with pytest.raises(ZooError, match="1 tokens and part is 1024"):
        position_losses(plain, ids[:, :1])
    with pytest.raises(ZooError, match="Linear has no allocate_cache"):
        position_losses(torch.nn.Linear(2, 2), ids)


def test_packed_documents_stay_apart_where_it_only_forgets():
    _, own, x = mixers(a_mult=2.0)
    seq_idx = torch.tensor([[0] * 20 + [1] * 17] * 2, dtype=torch.int32)
    alone = torch.cat([own(x[:, :20]), own(x[:, 20:])], 1)
    torch.testing.assert_close(own(x, seq_idx=seq_idx), alone)


def test_streams_of_chains():
    torch.manual_seed(0)
    ids = chains(4, 600, switching=True)
    assert ids.shape == (4, 600) and int(ids.min()) >= 0 and int(ids.max()) < 16
    torch.manual_seed(0)
    assert torch.equal(chains(4, 600, switching=True), ids)

    def pairs(part):  # how often each symbol follows each
        return torch.bincount(part[:-1] * 16 + part[1:], minlength=256).double()

    torch.manual_seed(0)
    steady = chains(1, 600, switching=False)[0]
    same = torch.cosine_similarity(pairs(steady[:300]), pairs(steady[300:]), dim=0)
    other = torch.cosine_similarity(pairs(ids[0, :96]), pairs(ids[0, 400:496]), dim=0)
    assert float(same) > 0.8 > 0.6 > float(other)


def test_the_curve_of_passkeys(tmp_path):
    data = Passkey(samples=1, length=200)
    vocabulary = data.vocab_size  # trains the tokenizer
    save_causal_lm(small_lm(vocab_size=vocabulary), data.tokenizer, tmp_path)
    found = Retrieval(str(tmp_path), lengths=(190, 210), samples=2, window=8).measure(0)
    assert found.values == {"found_190": 0, "found_210": 0}
    assert [*found.curves[0].x] == [190, 210]


@pytest.mark.slow
def test_what_the_proof_measures():
    found = Collapse(steps=1, batch=2, mitigate=True, d_state=4).measure(0)
    assert found.values["gap"] == found.values["plain"] - found.values["start"]
    assert [curve.line for curve in found.curves] == [None, "window", "norm", "forget"]
    # nothing is learnt in a step
    assert all(abs(found.values[name] - math.log(16)) < 0.5 for name in ("start", "window", "norm"))
