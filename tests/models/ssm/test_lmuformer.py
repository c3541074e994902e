import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

import zoo
from zoo.errors import ZooError
from zoo.models.ssm._lmuformer_steps import LIF, LegendreMemory, Pass

TINY = {"num_classes": 5, "in_channels": 6, "embed_dims": 16, "num_heads": 4, "theta": 20}
STREAMING = ("lmuformer", "lmuformer_spiking", "lmuformer_spiking_early")


def built(name: str, **settings):
    """A model whose norms have seen data, so that its neurons fire now and then."""
    torch.manual_seed(0)
    model = zoo.create_model(name, **TINY, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    model(torch.randn(8, 20, 6) * 2)
    return model.eval()


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_stream_equals_the_whole(name, size):
    model, x = built(name), torch.randn(3, 20, 6)
    model.test_mode = "all_seq"
    with torch.no_grad():
        each = model(x).transpose(0, 1)  # [B, L, K]
        model.test_mode = "normal"
        whole = model(x)
    stream, pieces = model.stream(), x.split(size, dim=1)
    heard = [stream.feed(piece, last=piece is pieces[-1]) for piece in pieces]
    torch.testing.assert_close(torch.cat(heard, 1), each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each[:, -1], whole, rtol=1e-4, atol=1e-5)
    assert whole.std() > 0.1, "something was heard"
    if size == 1:
        # five convolutions that look a step ahead; the last feed gives the rest
        assert [h.shape[1] for h in heard] == [0] * 5 + [1] * 14 + [6]


@pytest.mark.parametrize("name", [*STREAMING, "lmuformer_attention"])
def test_padding_changes_nothing(name):
    model, x = built(name), torch.randn(2, 20, 6)
    with torch.no_grad():
        alone = model(x[1:, :13])
        padded = model(x, torch.tensor([20, 13]))
    torch.testing.assert_close(padded[1:], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STREAMING[1:])
def test_spikes_pass_gradients_to_every_parameter(name):
    model = built(name).train()
    norm = model.block[0].attn.lmu.bn_u
    torch.nn.init.constant_(norm.weight, 1.5)
    torch.nn.init.constant_(norm.bias, 0.5)
    model(torch.randn(8, 60, 6)).square().sum().backward()
    still = [n for n, p in model.named_parameters() if not p.grad.any()]
    assert still == []


def test_attention_has_no_stream():
    with pytest.raises(ZooError, match="attn_ms has no stream"):
        built("lmuformer_attention").stream()


def test_the_memory_is_the_exact_solution():
    memory = LegendreMemory(6, 10)
    q = np.arange(6)[:, None]
    A = (2 * q + 1) / 10 * np.where(q < q.T, -1.0, (-1.0) ** (q - q.T + 1))
    B = (2 * q + 1) / 10 * (-1.0) ** q
    A, B, *_ = cont2discrete((A, B, np.ones((1, 6)), np.zeros(1)), 1.0, "zoh")
    np.testing.assert_allclose(memory.A, A, atol=1e-6)
    u = torch.randn(2, 1, 37)  # longer than the window
    m, expected = np.zeros((2, 6)), []
    for now in u[:, 0].T.numpy():
        m = m @ A.T + now[:, None] * B.T
        expected.append(m)
    np.testing.assert_allclose(memory(u), np.stack(expected, -1), atol=1e-5)
    stepped = memory(u, Pass(streaming=True))
    torch.testing.assert_close(stepped, memory(u), rtol=1e-4, atol=1e-5)


def test_neurons_by_hand():
    # v: 0.9; 0.95; 1.475 -> spike, rest; 0.5; 1.0 -> spike at exactly the threshold, rest; 0
    x = torch.tensor([[[1.8, 1.0, 2.0, 1.0, 1.5, 0.0]]])
    neurons = LIF()
    assert neurons(x).tolist() == [[[0, 0, 1, 0, 1, 0]]]
    way = Pass(streaming=True)
    assert [neurons(p, way).item() for p in x.split(1, -1)] == [0, 0, 1, 0, 1, 0]
    x = torch.tensor([[[1.0]]], requires_grad=True)
    neurons(x).sum().backward()
    soft = torch.sigmoid(torch.tensor(4 * (0.5 - 1.0)))
    torch.testing.assert_close(x.grad.flatten()[0], 4 * soft * (1 - soft) / 2)


def test_no_gradient_through_a_reset():
    x = torch.tensor([[[4.0, 1.0]]], requires_grad=True)
    LIF()(x)[..., 1].sum().backward()
    assert x.grad[..., 0].item() == 0, "after a spike nothing is left of what came before"
    assert x.grad[..., 1].item() > 0


def test_wrong_settings_and_inputs_are_said():
    with pytest.raises(ZooError, match="form is 'gru', expected one of lmu, slmu"):
        zoo.create_model("lmuformer", form="gru")
    with pytest.raises(ZooError, match="expected a multiple of num_heads 16"):
        zoo.create_model("lmuformer", embed_dims=40)
    with pytest.raises(ZooError, match=r"inputs have shape \(2, 20, 5\), expected \[B, L, 6\]"):
        built("lmuformer")(torch.zeros(2, 20, 5))
