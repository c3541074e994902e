import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import zoo
from zoo.decoding import generate
from zoo.errors import ZooError
from zoo.losses.distillation import attention_layers, tap
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.multimodal._mmmamba_attention import GroupedAttention, Mamba2Attention
from zoo.models.multimodal._mmmamba_config import DecoderConfig
from zoo.models.multimodal._mmmamba_cost import decode_bytes, full_size_bounds
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder, pixel_shuffle
from zoo.models.multimodal.mmmamba import HYBRID, load_decoder, seed_student
from zoo.tasks._freezing import train_only
from zoo.tasks.multimodal.distillation import TRAINABLE

COUNTS = {
    "mmmamba_teacher": 2_606_327_808,
    "mmmamba_linear": 2_741_992_448,
    "mmmamba_hybrid": 2_708_076_288,
}
SMALL = DecoderConfig(
    hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, embedding_layers=1,
    language_layers=3, vocab_size=30, image_size=16, patch_size=4, img_context_token_id=4,
)  # fmt: skip
KINDS = {"teacher": None, "linear": [], "hybrid": [0, 2]}


def small(kind: str, **settings) -> MultimodalDecoder:
    torch.manual_seed(0)
    return MultimodalDecoder(replace(SMALL, attention_layers=KINDS[kind], **settings)).eval()


def picture_and_text() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30, (2, 12), generator=generator)
    ids[:, 2:6] = 4
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_counts_of_what_learns_and_of_a_converted_layer():
    with torch.device("meta"):
        layer = Mamba2Attention(2048, 16, 8)
        linear, hybrid = zoo.create_model("mmmamba_linear"), zoo.create_model("mmmamba_hybrid")
    attention = 4096 * 2048 + 2048 * 2048
    assert sum(p.numel() for p in layer.parameters()) == attention + 4_239_520
    for model, layers, expected in ((linear, 32, 404_100_096), (hybrid, 24, 303_075_072)):
        for stage, missing in ((2, 0), (3, 32 * layers)):
            learning = train_only(model, TRAINABLE[stage], required=False)
            count = sum(model.get_parameter(name).numel() for name in learning)
            assert count == expected - missing
        assert not any(p.requires_grad for n, p in model.named_parameters() if "o_proj" in n)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_one_pass(kind):
    model, batch = small(kind), picture_and_text()
    whole = model(**batch, output_hidden_states=True)
    assert len(whole.hidden_states) == 5 and whole.logits.shape == (2, 12, 30)
    ids = batch["input_ids"]
    with torch.no_grad():
        out = model(ids[:, :7], batch["pixel_values"], use_cache=True)
        logits, before = [out.logits], out.cache.nbytes
        for part in ids[:, 7:].split([1, 1, 3], dim=1):
            logits.append(model(part, cache=out.cache).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=1e-4, atol=1e-5)
    assert out.cache.constant_size == (kind == "linear")
    assert (out.cache.nbytes > before) == (kind != "linear")
    embedded = model.embed(**batch)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, whole.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_every_parameter(kind):
    model, batch = small(kind, normalize_encoder_output=True).train(), picture_and_text()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(**batch).logits.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=10.0).step()
    unchanged = {name for name, p in model.named_parameters() if torch.equal(before[name], p)}
    # HoVLE has a second text embedding, and a class token, that nothing reads
    assert unchanged == {
        "language_model.model.tok_embeddings.weight",
        "embedding_model.vision_embeddings.class_embedding",
    }


@pytest.mark.parametrize("flags", [{}, {"use_D": True, "use_qknorm": True}, {"use_A": False}])
def test_scan_is_the_recurrence_and_the_quadratic_form(flags):
    torch.manual_seed(0)
    layer = Mamba2Attention(32, 4, 2, use_gnorm=False, mimic_init=False, **flags).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        whole = layer.heads(x)
        state = layer.allocate_state(2)
        steps = torch.cat([layer.heads(token, state) for token in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, whole)
    if flags:
        return
    vkq = torch.cat([layer.v_proj(x), layer.k_proj(x), layer.q_proj(x)], dim=-1)
    vkq = torch.nn.functional.silu(layer.conv1d(vkq.mT)[..., :9].mT)
    v, k, q = (t.unflatten(-1, (-1, 8)) for t in vkq.split([16, 16, 32], dim=-1))
    v, k = v.repeat_interleave(2, 2), k.repeat_interleave(2, 2)
    dt = torch.nn.functional.softplus(layer.in_proj(x) + layer.dt_bias)
    total = (-layer.A_log_bias.exp() * dt).cumsum(1).mT  # [B, H, L]
    decay = (total[..., :, None] - total[..., None, :]).exp().tril()
    scores = torch.einsum("blhn,bmhn->bhlm", q, k) * decay
    y = torch.einsum("bhlm,bmh,bmhp->blhp", scores, dt, v).flatten(2)
    torch.testing.assert_close(whole, y)


def published_state_dict(layer: Mamba2Attention) -> dict[str, torch.Tensor]:
    """The parameters as the authors publish them: one matrix for v, k, q, gate and step."""
    state = dict(layer.state_dict())
    order = ("v_proj", "k_proj", "q_proj", "g_proj", "in_proj")
    state["wvkqgdt.weight"] = torch.cat([state.pop(f"{name}.weight") for name in order])
    state["g_norm_swish_gate.weight"] = state.pop("g_norm.weight")
    return state


def test_published_layout_there_and_back():
    model = small("hybrid")
    state = {}
    for name, value in model.state_dict().items():
        if ".attention." not in name:
            state[name] = value
    for name, module in model.named_modules():
        if isinstance(module, Mamba2Attention):
            fused = published_state_dict(module)
            assert fused["wvkqgdt.weight"].shape == (16 + 16 + 32 + 32 + 4, 32)
            state |= {f"{name}.{key}": value for key, value in fused.items()}
        elif isinstance(module, GroupedAttention):
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    assert len(state) == len(model.state_dict()) - 2 * 4
    other = small("hybrid")
    torch.nn.init.zeros_(other.language_model.output.weight)
    other.load_state_dict(other.remap_state_dict(state))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_seeding():
    teacher, student = small("teacher"), small("linear")
    random = small("linear")
    seed_student(student, teacher)
    attention, layer = teacher.decoder_layers[1].attention, student.decoder_layers[1].attention
    rows = attention.wqkv.weight.view(2, 4, 8, 32)  # two queries, key, value of each group
    assert torch.equal(layer.q_proj.weight.view(2, 2, 8, 32), rows[:, :2])
    assert torch.equal(layer.k_proj.weight.view(2, 8, 32), rows[:, 2])
    assert torch.equal(layer.v_proj.weight.view(2, 8, 32), rows[:, 3])
    assert torch.equal(layer.o_proj.weight, attention.wo.weight)
    assert layer.in_proj.weight.abs().max() == 0 and layer.A_log_bias.unique().tolist() == [1]
    seed_student(random, teacher, inherit_qkv=False)
    assert not torch.equal(random.decoder_layers[1].attention.q_proj.weight, layer.q_proj.weight)
    assert torch.equal(random.language_model.output.weight, teacher.language_model.output.weight)
    hybrid = small("hybrid")
    seed_student(hybrid, teacher)
    kept = hybrid.decoder_layers[0].attention
    assert torch.equal(kept.wqkv.weight, teacher.decoder_layers[0].attention.wqkv.weight)
    with pytest.raises(ZooError, match="not the teacher"):
        seed_student(student, MultimodalDecoder(replace(SMALL, intermediate_size=64)))


COMMON = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=30, eos_token_id=None, bos_token_id=None, pad_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_any_llama_like_decoder_can_be_the_teacher(kind):
    torch.manual_seed(0)
    if kind == "llama":
        teacher = LlamaForCausalLM(LlamaConfig(**COMMON)).eval()
    else:
        tied = dict(tie_word_embeddings=True)
        teacher = Qwen2ForCausalLM(Qwen2Config(**COMMON, **tied)).eval()
        torch.nn.init.normal_(teacher.model.layers[0].self_attn.k_proj.bias)
    config = DecoderConfig.from_dict(teacher.config.to_dict())
    same = MultimodalDecoder(config).eval()
    seed_student(same, teacher)
    ids = torch.randint(30, (2, 9))
    theirs = teacher(input_ids=ids).logits
    torch.testing.assert_close(same(input_ids=ids).logits, theirs, rtol=1e-4, atol=1e-5)
    with (
        torch.no_grad(),
        tap(attention_layers(teacher)) as seen,
        tap(attention_layers(same)) as ours,
    ):
        teacher(input_ids=ids, use_cache=False)
        same(input_ids=ids)
    for a, b in zip(seen.inputs + seen.outputs, ours.inputs + ours.outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    student = MultimodalDecoder(replace(config, attention_layers=[1])).eval()
    seed_student(student, teacher)
    out = generate(student, ids[:, :5], "plain", max_new_tokens=4)
    with torch.no_grad():
        text = ids[:1, :5]
        for _ in range(4):
            text = torch.cat([text, student(input_ids=text).logits[:, -1:].argmax(-1)], dim=1)
    assert out.new_tokens[0] == text[0, 5:].tolist()
    with pytest.raises(ZooError, match="text alone"):
        student(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16))


def test_other_rotary_positions_are_the_teachers_alone():
    rope = dict(rope_type="linear", factor=2.0, rope_theta=10000.0)
    teacher = LlamaForCausalLM(LlamaConfig(**COMMON, rope_parameters=rope)).eval()
    config = DecoderConfig.from_dict(teacher.config.to_dict())
    student = MultimodalDecoder(replace(config, attention_layers=[]))
    seed_student(student, teacher)
    theirs = teacher.model.layers[1].self_attn.o_proj.weight
    assert torch.equal(student.decoder_layers[1].attention.o_proj.weight, theirs)
    with pytest.raises(ZooError, match="'linear' rotary positions"):
        MultimodalDecoder(replace(config, attention_layers=[1]))


def test_configurations(tmp_path):
    published = {
        "force_image_size": 448,
        "downsample_ratio": 0.5,
        "embedding_config": {
            "num_hidden_layers": 8, "patch_size": 14, "use_pixel_shuffle_proj": True,
            "layers_block_type": (["mha"] + ["mamba2"] * 3) * 2,
        },
        "llm_config": {
            "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
            "num_key_value_heads": 8, "num_hidden_layers": 24, "vocab_size": 92553,
            "rms_norm_eps": 1e-5, "rope_theta": 10000,
            "layers_block_type": (["mha"] + ["mamba2"] * 3) * 6,
        },
    }  # fmt: skip
    assert DecoderConfig.from_dict(published) == DecoderConfig(attention_layers=HYBRID)
    published["embedding_config"]["pixel_shuffle_loc"] = "post"
    with pytest.raises(ZooError, match="pixel_shuffle_loc"):
        DecoderConfig.from_dict(published)
    with pytest.raises(ZooError, match="built like Llama"):
        DecoderConfig.from_dict({"model_type": "gpt2", "n_embd": 8})
    model = small("hybrid")
    export_causal_lm(model, None, tmp_path / "model")
    again = load_decoder(tmp_path / "model")
    assert again.config == model.config
    batch = picture_and_text()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"] == 30


HOVLE = {
    "embedding_config": {"num_hidden_layers": 2, "patch_size": 7, "image_size": 84},
    "llm_config": {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 99,
        "rms_norm_eps": 1e-4, "rope_theta": 500,
    },
}  # fmt: skip


def test_configurations_of_hovle():
    expected = DecoderConfig(
        hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, embedding_layers=2,
        language_layers=3, vocab_size=99, image_size=84, patch_size=7, downsample_ratio=1.0,
        rms_norm_eps=1e-4, rope_theta=500.0,
    )  # fmt: skip
    found = DecoderConfig.from_dict(HOVLE)
    assert found == expected and isinstance(found.rope_theta, float)
    assert (found.layers, found.image_tokens, found.is_attention(4)) == (5, 144, True)
    embedding = HOVLE["embedding_config"] | {
        "img_context_token_id": 7, "pixel_shuffle_loc": "pre", "use_pixel_shuffle_proj": True,
        "layers_block_type": ["mamba2", "mha"],
    }  # fmt: skip
    llm = HOVLE["llm_config"] | {"layers_block_type": ["mamba2", "mha", "mamba2"]}
    more = {"force_image_size": 56, "normalize_encoder_output": True}
    found = DecoderConfig.from_dict({"embedding_config": embedding, "llm_config": llm, **more})
    assert found == replace(
        expected, img_context_token_id=7, downsample_ratio=0.5, attention_layers=[1, 3],
        image_size=56, normalize_encoder_output=True,
    )  # fmt: skip
    assert [found.is_attention(i) for i in range(5)] == [False, True, False, True, False]
    assert found.image_tokens == 16
    more["downsample_ratio"] = 0.25
    found = DecoderConfig.from_dict({"embedding_config": embedding, "llm_config": llm, **more})
    assert found.image_tokens == 4


def test_configurations_like_llama():
    least = {
        "model_type": "mistral", "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 99,
    }  # fmt: skip
    expected = DecoderConfig(
        hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=4, embedding_layers=0,
        language_layers=3, vocab_size=99, rms_norm_eps=1e-6, rope_theta=10000.0,
    )  # fmt: skip
    assert DecoderConfig.from_dict(least) == expected
    full = least | {
        "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-4, "rope_theta": 500,
        "rope_scaling": {"type": "linear"}, "attention_bias": True, "eos_token_id": [5, 6],
        "tie_word_embeddings": True,
    }  # fmt: skip
    found = replace(
        expected, num_kv_heads=2, head_dim=24, rms_norm_eps=1e-4, rope_theta=500.0,
        rope_type="linear", qkv_bias=True, eos_token_id=5, tie_embeddings=True,
    )  # fmt: skip
    assert DecoderConfig.from_dict(full) == found
    rope = {"rope_parameters": {"rope_type": "yarn", "type": "other", "rope_theta": 9}}
    assert DecoderConfig.from_dict(full | rope | {"eos_token_id": 7}) == replace(
        found, rope_type="yarn", rope_theta=9.0, eos_token_id=7
    )
    assert DecoderConfig.from_dict(least | {"model_type": "qwen2"}).qkv_bias
    assert not DecoderConfig.from_dict(
        least | {"model_type": "qwen2", "attention_bias": False}
    ).qkv_bias


def test_images_of_other_sizes_and_wrong_numbers_of_tokens():
    model, batch = small("linear"), picture_and_text()
    larger = torch.randn(1, 3, 32, 32)
    ids = torch.full((1, 16), 4)
    assert model(ids, larger).logits.shape == (1, 16, 30)
    with pytest.raises(ZooError, match="places for 7: expected 4 image tokens a tile"):
        model(batch["input_ids"][:, 2:5].fill_(4)[:1].repeat(1, 3)[:, :7], batch["pixel_values"])
    grid = torch.arange(16).view(1, 16, 1)
    assert pixel_shuffle(grid, 0.5)[0].tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]
    ]  # fmt: skip


def test_bytes_by_count():
    ((memory, traffic),) = decode_bytes(DecoderConfig(), [103_000])
    keys_and_values = 2 * 32 * 8 * 128 * 103_000 * 2
    assert memory == 2 * COUNTS["mmmamba_teacher"] + keys_and_values
    short, long = decode_bytes(DecoderConfig(attention_layers=[]), [10, 103_000])
    assert short == long
    assert long[0] == 2 * COUNTS["mmmamba_linear"] + 32 * (4 * 16 * 128 * 128 + 2 * 2 * 4096)
    assert memory - long[0] > 0.7 * memory and traffic < memory
    bounds = full_size_bounds([1000, 103_000])
    for name, speedup, copying, saved in (
        ("linear", 3.75, 20.64, 0.705), ("hybrid", 2.22, 12.24, 0.529),
    ):  # fmt: skip
        assert bounds[name].speedup[1] == pytest.approx(speedup, abs=0.01)
        assert bounds[name].copying_speedup[1] == pytest.approx(copying, abs=0.1)
        assert bounds[name].memory_saved[1] == pytest.approx(saved, abs=0.001)
        assert bounds[name].speedup[0] < 1  # short of that, a gate of 4 M parameters a layer costs


@pytest.mark.parametrize("embedding_layers", [0, 1])
def test_bytes_of_a_small_hybrid(embedding_layers):
    config = replace(
        SMALL, embedding_layers=embedding_layers, attention_layers=[1], language_layers=3,
        tie_embeddings=True, head_dim=None if embedding_layers else 12,
    )  # fmt: skip
    mamba = embedding_layers + 3 - 1
    P = 8 if embedding_layers else 12
    with torch.device("meta"):
        model = MultimodalDecoder(replace(config, tie_embeddings=False))
    weights = sum(p.numel() for p in model.parameters())
    tables = 30 * 32 * (1 + embedding_layers)
    state = model.allocate_cache(1).layers[2]
    recurrent = mamba * (3 * state.conv.numel() + 4 * state.ssm.numel())
    key_value = 2 * 2 * P * 3  # two heads, three bytes a value
    for in_place, passes in ((True, 1), (False, 2 + 3 + 2)):  # copied, then repeated twice
        assert decode_bytes(config, [5, 9], bytes_per_value=3, in_place=in_place) == [
            (
                3 * weights + recurrent + key_value * n,
                3 * (weights - tables) + 2 * recurrent + passes * key_value * n,
            )
            for n in (5, 9)
        ]
