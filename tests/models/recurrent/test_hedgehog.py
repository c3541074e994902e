from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import zoo
from zoo.decoding import generate
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_causal_lm, save_causal_lm
from zoo.models.recurrent._hedgehog_attention import MAPS, FeatureMap
from zoo.models.recurrent.hedgehog import comparing, convert, converted_layers, load_lolcats

SHAPE = dict(
    vocab_size=21, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=64,
    initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip


def llama(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **settings)).double().eval()


def logits(model, ids, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


WINDOWS = [{}, {"window": 3, "identity": False}, {"window": 3, "terraced": False}]


@pytest.mark.parametrize("settings", WINDOWS)
def test_steps_and_parts_equal_the_whole(settings):
    model = convert(llama(), **settings)
    ids = torch.randint(1, 21, (2, 14))
    whole = logits(model, ids, use_cache=False)
    for cuts in ([1] * 14, [5, 1, 7, 1], [2, 12]):
        cache, found = DynamicCache(config=model.config), []
        for piece in ids.split(cuts, 1):
            found.append(logits(model, piece, cache=cache, use_cache=True))
        torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", WINDOWS)
def test_padding_and_the_future_change_nothing(settings):
    model = convert(llama(), **settings)
    layer = converted_layers(model)[0]
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    turned = model.model.rotary_emb(x, torch.arange(9)[None])
    present = torch.ones(1, 9, dtype=torch.bool)
    present[0, :4] = False
    other = x.clone()
    other[0, :4] = torch.randn(4, 16)
    mine, theirs = (layer(t, turned, present)[0][:, 4:] for t in (x, other))
    torch.testing.assert_close(mine, theirs)
    other = x.clone()
    other[0, 6:] = torch.randn(3, 16)
    mine, theirs = (layer(t, turned)[0][:, :6] for t in (x, other))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("settings", WINDOWS)
def test_weights_are_those_of_the_definition(settings):
    model = convert(llama(), **settings)
    layer, L = converted_layers(model)[1], 8
    x = torch.randn(1, L, 16, dtype=torch.float64)
    q, k, v = layer.queries_keys_values(x, model.model.rotary_emb(x, torch.arange(L)[None]))
    found = layer.compare(q, k, v)
    w, factor = settings.get("window", 0), 1 / 10
    for h in range(4):
        for i in range(L):
            first = i + 1
            if w:
                first = max(0, (i // w - 1) * w if settings.get("terraced", True) else i - w + 1)
            scores = [float(q[0, h, i] @ k[0, h, j]) / 2 for j in range(i + 1)]
            top = max(scores[first:], default=0.0)
            weights = []
            for j in range(i + 1):
                if j >= first:
                    weights.append(factor * torch.tensor(scores[j] - top).exp().item())
                else:
                    a, b = (
                        torch.cat([t.softmax(-1), (-t).softmax(-1)])
                        for t in (
                            q[0, h, i] @ layer.feature_map_q.mlp.layer[h],
                            k[0, h, j] @ layer.feature_map_k.mlp.layer[h],
                        )
                    )
                    weights.append(float((a @ b).detach()))
            expected = torch.tensor(weights) / sum(weights)
            torch.testing.assert_close(found.pred[0, h, i, : i + 1].float(), expected)
            torch.testing.assert_close(
                found.true[0, h, i, : i + 1].float(), torch.tensor(scores).softmax(-1)
            )
    torch.testing.assert_close(found.y_pred, found.pred @ v)


def test_comparing_answers_as_the_teacher():
    ids = torch.randint(1, 21, (2, 9))
    exact = logits(llama(), ids)
    model = convert(llama())
    assert (logits(model, ids) - exact).abs().max() > 1e-2
    with comparing(model) as found:
        torch.testing.assert_close(logits(model, ids), exact)
    assert len(found) == 2 and converted_layers(model)[0].comparing is None


def test_some_layers_and_other_models():
    assert len(converted_layers(convert(llama(), layers=[1]))) == 1
    model = convert(Qwen3ForCausalLM(Qwen3Config(**SHAPE)).double().eval())
    ids = torch.randint(1, 21, (1, 6))
    with comparing(model):
        logits(model, ids)  # its norms of queries and keys
    for given, settings, expected in (
        (GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2)), {}, "has 0 attention layers"),
        (model, {}, "converted already"),
        (llama(), {"layers": [2]}, "layers is \\[2\\]"),
        (llama(), {"feature_map": "cos"}, "feature_map"),
        (llama(), {"window": -1}, "window -1"),
    ):
        with pytest.raises(ZooError, match=expected):
            convert(given, **settings)
    with pytest.raises(ZooError, match="no converted layer"), comparing(llama()):
        pass


def test_is_saved_found_and_decoded(tmp_path):
    model = convert(llama(), window=3, feature_dim=2).float()
    save_causal_lm(model, None, tmp_path)
    again = load_causal_lm(tmp_path)
    ids = torch.randint(1, 21, (1, 7))
    torch.testing.assert_close(logits(again, ids), logits(model, ids))
    text = ids
    for _ in range(6):
        text = torch.cat([text, logits(model, text, use_cache=False)[:, -1:].argmax(-1)], 1)
    for method in ("plain", "token_recycling"):
        assert (
            generate(again, ids, method, max_new_tokens=6).sequences[0].tolist() == text[0].tolist()
        )
    hugging = again.generate(ids, max_new_tokens=6, do_sample=False)
    assert hugging[0].tolist() == text[0].tolist()


def test_lolcats_files(tmp_path):
    model = convert(llama(), window=3, feature_dim=2).float()
    new = {
        name: torch.randn_like(p)
        for name, p in model.named_parameters()
        if "feature_map" in name or "window_factors" in name
    }
    torch.save({"model_state_dict": new}, tmp_path / "distill.pt")
    down, up = torch.randn(3, 16), torch.randn(16, 3)
    start = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    low = {f"{start}A.default.weight": down, f"{start}B.default.weight": up}
    torch.save({"model_state_dict": low}, tmp_path / "ft.pt")
    before = model.model.layers[1].self_attn.q_proj.weight.detach().clone()
    load_lolcats(model, str(tmp_path / "distill.pt"), str(tmp_path / "ft.pt"))
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in new.items())
    weight = model.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(weight, before + 16 / 3 * up @ down)
    new.popitem()
    torch.save(new, tmp_path / "less.pt")
    with pytest.raises(ZooError, match="does not fit the model: missing"):
        load_lolcats(model, str(tmp_path / "less.pt"))
    del low[f"{start}B.default.weight"]
    torch.save(low, tmp_path / "half.pt")
    with pytest.raises(ZooError, match="no lora_B"):
        load_lolcats(model, str(tmp_path / "distill.pt"), str(tmp_path / "half.pt"))


def test_masks_of_other_kinds_are_refused():
    layer = zoo.create_model("hedgehog_small").model.layers[0].self_attn
    x = torch.randn(1, 3, 160)
    with pytest.raises(ZooError, match="masks of attn_implementation"):
        layer(x, (torch.ones(1, 3, 40), torch.zeros(1, 3, 40)), object())


def test_maps_by_hand():
    x = torch.tensor([1.0, -2.0])
    e = [math.exp(v) for v in (1, -2, 2, -4)]
    expected = {
        "softmax": [e[0] / (e[0] + e[1]), e[1] / (e[0] + e[1]),
                    1 / e[0] / (1 / e[0] + 1 / e[1]), 1 / e[1] / (1 / e[0] + 1 / e[1])],
        "softmax_half": [e[0] / (e[0] + e[1]), e[1] / (e[0] + e[1])],
        "exp": [1, math.exp(-3), math.exp(-3), 1],
        "exp_half": [1, math.exp(-3)],
        "softmax_joint": [v / (e[2] + e[3] + 1 / e[2] + 1 / e[3])
                          for v in (e[2], e[3], 1 / e[2], 1 / e[3])],
        "relu": [1, 1e-12],
        "elu": [2, e[1]],
    }  # fmt: skip
    assert MAPS.keys() == expected.keys()
    for kind, values in expected.items():
        found = FeatureMap(kind, nn.Identity())(x.view(1, 1, 1, 2)).flatten()
        torch.testing.assert_close(found, torch.tensor(values), rtol=1e-5, atol=0)


def test_rows_of_padding_are_zero_in_both_attentions():
    model = convert(llama())
    q = torch.randn(1, 4, 5, 4, dtype=torch.float64)
    present = torch.tensor([[False, False, True, True, True]])
    found = converted_layers(model)[0].compare(q, q, q, present)
    for weights in (found.true, found.pred):
        sums = weights.sum(-1)[0, 0].tolist()
        assert sums == pytest.approx([0, 0, 1, 1, 1], abs=1e-9)
    assert found.y_pred.isfinite().all() and found.y_true.isfinite().all()
