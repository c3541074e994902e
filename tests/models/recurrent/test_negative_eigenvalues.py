from __future__ import annotations

import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2
from zoo.models.recurrent.negative_eigenvalues import DeltaNet

SMALL = dict(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_heads=2, intermediate_size=24)
MIXERS = {
    "deltanet": lambda eig_range: DeltaNet(16, 2, eig_range=eig_range),
    "mamba": lambda eig_range: Mamba(16, d_state=4, eig_range=eig_range),
    "mamba2": lambda eig_range: Mamba2(16, d_state=4, headdim=8, eig_range=eig_range),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_steps_equal_the_whole(kind):
    """Tokens one by one, in parts and at once, with the wide range."""
    torch.manual_seed(0)
    mixer = MIXERS[kind]("pm1").double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        whole, state = mixer(x), mixer.allocate_state(2)
        parts = [mixer(x[:, :5], state=state)]
        parts += [mixer(x[:, t : t + 1], state=state) for t in range(5, 12)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("kind", MIXERS)
def test_ranges_differ_and_do_not_mix(kind):
    torch.manual_seed(0)
    wide, narrow = (MIXERS[kind](eig_range).double() for eig_range in ("pm1", "01"))
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    narrow.load_state_dict(wide.state_dict(), strict=False)
    assert (wide(x) - narrow(x)).abs().max() > 1e-7
    for to, of in ((wide, narrow), (narrow, wide)):
        with pytest.raises(RuntimeError, match="negative_eigenvalues"):
            to.load_state_dict(of.state_dict())


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_documents_stay_apart(kind):
    torch.manual_seed(0)
    mixer = MIXERS[kind]("pm1").double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    seq_idx = torch.tensor([[0] * 4 + [1] * 5], dtype=torch.int32)
    alone = torch.cat([mixer(x[:, :4]), mixer(x[:, 4:])], 1)
    torch.testing.assert_close(mixer(x, seq_idx=seq_idx), alone)


def authors_names(model: torch.nn.Module, fused: bool) -> dict[str, torch.Tensor]:
    """A state dict as flash-linear-attention writes it."""
    found = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("backbone.layers", "model.layers").replace(".mixer.", ".attn.")
        name = name.replace("backbone.embedding", "model.embeddings")
        name = name.replace("backbone.norm_f", "model.norm")
        name = name.replace(".norm2.", ".mlp_norm.")
        name = name if ".attn." in name else name.replace(".norm.", ".attn_norm.", 1)
        name = name.replace("model.attn_norm", "model.norm").replace("mlp.fc2", "mlp.down_proj")
        if name.endswith("mlp.fc1.weight"):
            up, gate = tensor.chunk(2)
            name = name.replace("fc1", "gate_proj")
            if not fused:
                found[name.replace("gate_proj", "up_proj")] = up
            tensor = torch.cat([gate, up]) if fused else gate
        if "negative" not in name:
            found[name] = tensor
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_names_of_flash_linear_attention(fused):
    torch.manual_seed(0)
    model = zoo.create_model("negative_eigenvalues_deltanet", **SMALL)
    other = zoo.create_model("negative_eigenvalues_deltanet", **SMALL)
    with pytest.warns(UserWarning, match="do not say the range"):
        other.load_state_dict(other.remap_state_dict(authors_names(model, fused)))
    ids = torch.randint(11, (1, 7))
    assert torch.equal(model(ids).logits, other(ids).logits)
    narrow = zoo.create_model("negative_eigenvalues_deltanet", **SMALL, eig_range="01")
    narrow.load_state_dict(narrow.remap_state_dict(authors_names(model, fused)))  # says nothing


def test_a_wide_and_tied_model():
    width = zoo.create_model("deltanet_1_3b", **SMALL | {"intermediate_size": None})
    assert width.backbone.layers[0].mlp.fc1.weight.shape == (2 * 256, 16)
    tied = zoo.create_model("deltanet_1_3b", **SMALL, tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.backbone.embedding.weight


def test_a_state_takes_several_reflections():
    """With beta 2 a step is a reflection: two of them turn the plane by twice their angle."""
    mixer = DeltaNet(2, 1, use_short_conv=False, qk_activation="identity", eig_range="pm1")
    with torch.no_grad():
        for projection in (mixer.q_proj, mixer.k_proj, mixer.o_proj):
            projection.weight.copy_(torch.eye(2))
        mixer.v_proj.weight.zero_()  # only what the state holds
        mixer.b_proj.weight.copy_(torch.full((1, 2), 1e4))
        state = mixer.allocate_state(1)
        state.ssm[:] = torch.eye(2)
        angle = 0.3
        steps = torch.tensor([[[1.0, 0.0], [torch.tensor(angle).cos(), torch.tensor(angle).sin()]]])
        mixer(steps, state=state)
    turned = torch.tensor(2 * angle)
    expected = torch.stack(
        [torch.stack([turned.cos(), -turned.sin()]), torch.stack([turned.sin(), turned.cos()])]
    )
    torch.testing.assert_close(state.ssm[0, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(num_heads=3), "DeltaNet: 3 heads do not divide 16 keys, 16 values"),
        (dict(qk_norm="l1"), "qk_norm is 'l1', expected one of l2, sum"),
        (dict(qk_activation="gelu"), "qk_activation is 'gelu', expected one of"),
        (dict(eig_range="-11"), "DeltaNet: eig_range is '-11', expected one of 01, pm1"),
    ],
)
def test_wrong_arguments(change, words):
    with pytest.raises(ZooError) as caught:
        DeltaNet(**dict(d_model=16, num_heads=2) | change)
    assert words in str(caught.value)


def test_documents_are_refused():
    with pytest.raises(ZooError, match="seq_idx cannot be given"):
        DeltaNet(16)(torch.randn(1, 3, 16), seq_idx=torch.zeros(1, 3, dtype=torch.int32))
