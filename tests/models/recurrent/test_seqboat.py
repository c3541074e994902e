from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.errors import ZooError
from zoo.models.recurrent._seqboat_attention import (
    RelativeBias,
    local_attention,
    local_attention_reference,
)
from zoo.models.recurrent.seqboat import SeqBoat, SeqBoatLayer, compress, extract, remap_seqboat


def drawn(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return layer.double().eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "relu2"])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(("n", "window"), [(1, 4), (4, 4), (13, 4), (13, 1), (5, 9)])
def test_blocks_equal_all_pairs(causal, activation, positions, n, window):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, n, 6, dtype=torch.float64)
    valid = torch.arange(n) < torch.tensor([[n], [max(1, n - 2)]])
    bias = RelativeBias(3 * window).double()
    where = torch.randint(40, (2, n)).sort(1).values if positions else None
    given = (q, k, v, valid, window, causal, activation, bias, where)
    found, expected = local_attention(*given), local_attention_reference(*given)
    torch.testing.assert_close(found[valid], expected[valid])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("attention", ["softmax", "relu2"])
@pytest.mark.parametrize("bias", ["simple", "local"])
def test_layer_token_by_token(bidirectional, attention, bias):
    """Written out for each token from the equations."""
    torch.manual_seed(1)
    w = 3
    layer = drawn(SeqBoatLayer(6, 4, 5, 3, window=w, bidirectional=bidirectional, bias=bias,
                               attention=attention, max_positions=8))  # fmt: skip
    x = torch.randn(1, 14, 6, dtype=torch.float64)
    with torch.no_grad():
        logits = layer.hx_proj(F.silu(layer.ssm(x)))[0, :, :2]
        layer.hx_proj.bias[1] -= (logits[:, 1] - logits[:, 0]).median() + 1e-3  # half of them
        found, active = layer.routed(x)
        mx = F.silu(layer.ssm(x))
        hx = layer.hx_proj(mx)[0]
        chances = (hx[:, :2] / layer.q_router.temp.exp()).softmax(-1)
        on = [t for t in range(14) if chances[t, 1] > chances[t, 0]]
        assert active[0].nonzero().flatten().tolist() == on
        assert 2 < len(on) < 14
        z, r, v = F.silu(layer.mx_proj(mx[0])).split([4, 5, 5], -1)
        q, k = z * layer.gamma[0] + layer.beta[0], z * layer.gamma[1] + layer.beta[1]
        table = layer.rel_pos_bias.rel_pos_bias
        far = len(table) // 2
        for t in range(14):
            h = hx[t, 2:].clone()
            if t in on:
                i = on.index(t)
                last = i + w + 1 if bidirectional else i + 1
                near = [(j, on[j]) for j in range(max(0, i - w), min(len(on), last))]
                scale = 0.5 if attention == "softmax" else 1 / (w * (2 if bidirectional else 1))
                apart = [(s - t) if bias == "simple" else (j - i + w) for j, s in near]
                scores = torch.stack([
                    (q[t] * k[s]).sum() * scale + table[max(-far, min(far, d)) + far]
                    for (_, s), d in zip(near, apart, strict=True)
                ])  # fmt: skip
                a = scores.softmax(0) if attention == "softmax" else scores.relu() ** 2
                seen = (a[:, None] * v[[s for _, s in near]]).sum(0)
                h += layer.h_proj(seen * r[t]) * chances[t].max()
            out = layer.norm(F.silu(x[0, t] + h)[None, None])[0, 0]
            torch.testing.assert_close(found[0, t], out)


def test_packing():
    x = torch.arange(10.0).view(2, 5, 1)
    active = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    packed, valid, order = compress(x, active)
    assert packed[valid].flatten().tolist() == [1, 3, 4, 9]
    assert valid.tolist() == [[True] * 3, [True, False, False]]
    assert order[valid].tolist() == [1, 3, 4, 4]
    assert torch.equal(extract(packed, active), x * active[..., None])


def test_nobody_active():
    """No attention, finite gradients of all of it, and none for the router to begin with."""
    torch.manual_seed(0)
    layer = SeqBoatLayer(6, 4, window=2)
    with torch.no_grad():
        layer.hx_proj.bias[0] = 100
    x = torch.randn(2, 7, 6)
    y, active = layer.routed(x)
    y.square().sum().backward()
    never = SeqBoatLayer(6, 4, window=2, route="never")
    never.load_state_dict(layer.state_dict())
    assert not active.any()
    torch.testing.assert_close(y, never(x))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer.mx_proj.weight.grad.abs().max() == 0


def test_causal_layer_sees_nothing_to_come():
    torch.manual_seed(2)
    layer = drawn(SeqBoatLayer(6, 4, window=3, bidirectional=False))
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 7:] += 1
    torch.testing.assert_close(layer(x)[:, :7], layer(other)[:, :7])
    assert (layer(x) - layer(other))[:, 7].abs().max() > 1e-3


def test_activations_and_padding():
    torch.manual_seed(0)
    model = drawn(SeqBoat(3, vocab_size=9, d_model=8, n_layers=2, d_qk=4, window=3, norm="layer"))
    tokens, lengths = torch.randint(1, 9, (2, 10)), torch.tensor([10, 6])
    active = model.activations(tokens, lengths)
    assert active.shape == (2, 2, 10)
    assert active.any()
    assert not active[:, 1, 6:].any()
    torch.testing.assert_close(model(tokens, lengths)[1:], model(tokens[1:, :6]))


def test_authors_names():
    shapes = {
        "seq_layers.0.ssm.delta": ((3, 2, 1), "model.layers.0.ssm.delta", (3, 2)),
        "final_norm.norm.weight": ((3,), "model.norm.norm.weight", (3,)),
        "decoder.weight": ((2, 3), "decoder.output_transform.weight", (2, 3)),
        "seq_layers.0.beta": ((2, 1), "model.layers.0.beta", (2, 1)),
    }
    found = remap_seqboat({name: torch.ones(shape) for name, (shape, _, _) in shapes.items()})
    expected = {ours: shape for _, ours, shape in shapes.values()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected


@pytest.mark.parametrize(
    "wrong", [{"attention": "x"}, {"bias": "x"}, {"route": "x"}, {"window": 0}, {"bias": "rotary"}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ZooError, match="SeqBoat"):
        SeqBoatLayer(6, d_qk=5, **wrong)
    with pytest.raises(ZooError, match="rate"):
        SeqBoat(3, vocab_size=9, d_model=8, n_layers=1)(torch.ones(1, 4).long(), rate=2.0)
