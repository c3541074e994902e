import json

import pytest
import torch
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers import MambaConfig as TransformersConfig

import zoo
from zoo.data.language.text import train_tokenizer
from zoo.decoding import generate
from zoo.decoding.draft_model import trial_draft
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm, load_causal_lm, load_tokenizer
from zoo.models.language.mamba import MambaConfig, MambaLM

COUNTS = {
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1_4b": 1_372_178_432,
    "mamba_2_8b": 2_768_345_600,
    "mamba2_130m": 128_989_632,
    "mamba2_370m": 368_346_624,
    "mamba2_780m": 780_161_280,
    "mamba2_1_3b": 1_343_757_312,
    "mamba2_2_7b": 2_702_599_680,
    "mamba2attn_2_7b": 2_697_590_880,
}
STATES = {"mamba_130m": 589_824, "mamba2_130m": 4_718_592, "mamba_2_8b": 5_242_880}

MAMBA2 = {"layer": "Mamba2", "d_state": 8, "headdim": 8, "chunk_size": 4, "ngroups": 2}
ATTENTION = dict(causal=True, num_heads=4, num_heads_kv=2, d_conv=4, rotary_emb_dim=4)
KINDS = {
    "mamba": {"ssm_cfg": {"d_state": 4, "use_fast_path": False}},
    "mamba2": {"ssm_cfg": MAMBA2, "pad_vocab_size_multiple": 16},
    "hybrid": {"ssm_cfg": MAMBA2, "attn_layer_idx": [1], "attn_cfg": ATTENTION},
    "mlp": {"ssm_cfg": {"d_state": 4}, "d_intermediate": 40, "attn_layer_idx": [0],
            "attn_cfg": dict(causal=True, num_heads=4, mlp_dim=8, rotary_emb_dim=8,
                             rotary_emb_interleaved=True)},
}  # fmt: skip


def small(kind: str, wild: bool = False, **settings) -> MambaLM:
    torch.manual_seed(0)
    model = MambaLM(d_model=32, n_layer=2, vocab_size=50, **KINDS[kind], **settings).eval()
    if wild:  # texts that do not repeat soon
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
        assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
        if name in STATES:
            cache = model.allocate_cache(1)
            assert sum(state.ssm.numel() for state in cache.layers) == STATES[name]
            assert cache.constant_size


def test_the_hybrid_is_as_its_published_settings_say():
    with torch.device("meta"):
        config = zoo.create_model("mamba2attn_2_7b").config
    assert config.attn_layer_idx == [9, 18, 27, 36, 45, 56]
    assert config.attn_cfg == {
        "causal": True, "d_conv": 4, "head_dim": 128, "num_heads": 30, "out_proj_bias": False,
        "qkv_proj_bias": False, "rotary_emb_dim": 64,
    }  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_overrides_win(name):
    with torch.device("meta"):
        config = zoo.create_model(name, d_model=64, n_layer=1, vocab_size=50).config
    assert (config.d_model, config.n_layer, config.vocab_size) == (64, 1, 50)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_one_pass(kind):
    model = small(kind)
    ids = torch.randint(50, (2, 11))
    whole = model(ids, output_hidden_states=True)
    assert len(whole.hidden_states) == 3
    with torch.no_grad():
        out = model(ids[:, :3], use_cache=True)
        logits, cache = [out.logits], out.cache
        for part in ids[:, 3:].split([4, 1, 1, 1, 1], dim=1):
            logits.append(model(part, cache=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=1e-4, atol=1e-5)
    last = model(inputs_embeds=model.get_input_embeddings()(ids), logits_to_keep=2).logits
    torch.testing.assert_close(last, whole.logits[:, -2:])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_do_not_leak(kind):
    model = small(kind)
    ids = torch.randint(50, (1, 12))
    seq_idx = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    alone = torch.cat([model(part).logits for part in ids.split([5, 7], dim=1)], 1)
    packed = model(ids, seq_idx=seq_idx).logits
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    assert (model(ids).logits[:, 5:] - alone[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_every_parameter(kind):
    model = small(kind, tie_embeddings=False).train()
    ids = torch.randint(50, (2, 12))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    unchanged = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert not unchanged
    assert all(name.endswith((".A_log", ".D", "dt_bias", "dt_proj.bias"))
               for name in model.no_weight_decay())  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_transformers_models_load(groups, tmp_path):
    common = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2)
    torch.manual_seed(0)
    if groups == 1:
        theirs = MambaForCausalLM(TransformersConfig(state_size=8, use_bias=True, **common))
    else:
        shape = dict(state_size=8, num_heads=8, head_dim=8, n_groups=groups, chunk_size=8)
        theirs = Mamba2ForCausalLM(Mamba2Config(**shape, **common))
    theirs.eval().save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path)
    assert isinstance(model, MambaLM)
    ids = torch.randint(61, (2, 19))
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    again = MambaLM(model.config)
    report = zoo.load_pretrained(again, tmp_path)
    assert not report.missing and not report.unexpected


def test_authors_layout_there_and_back(tmp_path):
    model = small("hybrid", eos_token_id=3)
    tokenizer = train_tokenizer(["a b c"], 300)
    export_causal_lm(model, tokenizer, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["d_model"] == 32 and written["ssm_cfg"]["layer"] == "Mamba2"
    again = load_causal_lm(tmp_path / "model", dtype=torch.bfloat16)
    assert again.config == model.config
    assert again.lm_head.weight is again.backbone.embedding.weight
    assert again.lm_head.weight.dtype == torch.bfloat16
    assert isinstance(load_tokenizer(tmp_path / "model"), PreTrainedTokenizerFast)
    config, _ = PretrainedConfig.get_config_dict(tmp_path / "model")
    assert MambaConfig.from_dict(config) == model.config


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid"])
def test_decoding_methods_give_the_greedy_text(kind):
    model = small(kind, wild=True, tie_embeddings=False)
    ids = torch.randint(1, 50, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = []
    for row, keep in zip(ids, mask.bool(), strict=True):
        text = row[keep][None]
        with torch.no_grad():
            for _ in range(10):
                text = torch.cat([text, model(text).logits[:, -1:, :50].argmax(-1)], dim=1)
        expected.append(text[0, -10:].tolist())
    methods = {"plain": {}, "token_recycling": {}, "speculative": {"draft": trial_draft(model)}}
    for method, options in methods.items():
        out = generate(model, ids, method, attention_mask=mask, max_new_tokens=10, **options)
        assert out.new_tokens == expected, method
    assert len({token for row in expected for token in row}) > 5


def test_errors():
    with pytest.raises(ZooError, match="Mamba7"):
        MambaLM(d_model=8, n_layer=1, ssm_cfg={"layer": "Mamba7"})
    with pytest.raises(ZooError, match="cannot build 'mamba_130m'"):
        zoo.create_model("mamba_130m", dmodel=8)
    with pytest.raises(ZooError, match="not of a Mamba language model"):
        MambaConfig.from_dict({"model_type": "llama", "hidden_size": 8})
    with pytest.raises(ZooError, match="whole heads"):
        zoo.create_model("mamba2_130m", d_model=8, n_layer=1, vocab_size=8)
    with pytest.raises(ZooError, match="one of input_ids"):
        small("mamba")()
