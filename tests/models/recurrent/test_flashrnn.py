from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from zoo.errors import ZooError
from zoo.models.recurrent.flashrnn import RecurrentMixer

TORCH = {"flashrnn_lstm": nn.LSTM, "flashrnn_gru": nn.GRU, "flashrnn_elman": nn.RNN}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", TORCH)
def test_weights_of_torch_load(name, bias):
    """Outputs, last states and the gradients of the weights are those of PyTorch's network."""
    torch.manual_seed(0)
    theirs = TORCH[name](6, 10, num_layers=2, batch_first=True, bias=bias)
    ours = zoo.create_model(name, input_size=6, num_heads=1, head_dim=10, num_layers=2)
    ours.load_state_dict(ours.remap_state_dict(theirs.state_dict()))
    x = torch.randn(3, 9, 6)
    expected, last = theirs(x)
    found, states = ours(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    h = last[0] if isinstance(last, tuple) else last
    for layer, state in enumerate(states):
        torch.testing.assert_close(state[0, :, 0, 0], h[layer], atol=1e-5, rtol=1e-5)
    grads = dict(zip(theirs.state_dict(), torch.autograd.grad(
        expected.square().sum(), list(theirs.parameters())), strict=True))  # fmt: skip
    found.square().sum().backward()
    for i, layer in enumerate(ours.layers):
        torch.testing.assert_close(
            layer.W.weight.grad, grads[f"weight_ih_l{i}"], atol=1e-4, rtol=1e-4
        )


def test_other_networks_of_torch_are_refused():
    model = zoo.create_model("flashrnn_lstm", input_size=6, num_heads=1, head_dim=10)
    for theirs in (
        nn.LSTM(6, 10, bidirectional=True),
        nn.LSTM(6, 10, num_layers=2),
        nn.LSTM(6, 10, proj_size=5),
    ):
        with pytest.raises((ZooError, RuntimeError)):
            model.load_state_dict(model.remap_state_dict(theirs.state_dict()))
    heads = zoo.create_model("flashrnn_lstm", input_size=6, num_heads=2, head_dim=5)
    with pytest.raises(ZooError, match="1 layers of 2 heads: expected"):
        heads.remap_state_dict(nn.LSTM(6, 10).state_dict())


@pytest.mark.parametrize("function", ["elman", "lstm", "gru", "slstm"])
def test_a_language_model_goes_on_where_it_stands(function):
    """Token by token, in two parts and at once, with a cache of one size that can be copied."""
    torch.manual_seed(0)
    model = zoo.create_model(
        "flashrnn_lm", d_model=16, n_layer=2, vocab_size=21, d_intermediate=24,
        ssm_cfg={"layer": "RNN", "num_heads": 2, "function": function},
    ).eval()  # fmt: skip
    ids = torch.randint(21, (2, 11))
    with torch.inference_mode():
        whole = model(ids).logits
        cache = model.allocate_cache(2)
        size = cache.nbytes
        logits = [model(part, cache=cache).logits for part in ids[:, :6].split(1, dim=1)]
        kept = cache.clone()
        logits.append(model(ids[:, 6:], cache=cache).logits)
        again = model(ids[:1, 6:], cache=kept.select([0])).logits
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, whole[:1, 6:], atol=1e-5, rtol=1e-5)
    assert cache.nbytes == size and cache.constant_size
    assert type(kept).stack([kept, cache]).batch_size == 4
    with pytest.raises(ZooError, match="cannot be cut back"):
        cache.truncate(3)


def test_documents_cannot_be_kept_apart():
    mixer = RecurrentMixer(8, 2)
    with pytest.raises(ZooError, match="seq_idx cannot be given"):
        mixer(torch.zeros(1, 4, 8), seq_idx=torch.zeros(1, 4, dtype=torch.int32))
    with pytest.raises(ZooError, match="3 heads do not divide the 8 channels"):
        RecurrentMixer(8, 3)


def test_heads_are_normalised_apart():
    """A channel of one head does not move what the other head says."""
    torch.manual_seed(0)
    mixer = RecurrentMixer(8, 2, "lstm")
    mixer.out_proj.weight.data = torch.eye(8)
    x = torch.randn(2, 5, 8)
    before = mixer(x)
    with torch.no_grad():
        mixer.layer.b[:, 1] += 1  # of the second head
    after = mixer(x)
    torch.testing.assert_close(after[..., :4], before[..., :4])
    assert not torch.allclose(after[..., 4:], before[..., 4:])
    torch.testing.assert_close(after.unflatten(-1, (2, 4)).mean(-1), torch.zeros(2, 5, 2),
                               atol=1e-5, rtol=0)  # fmt: skip
