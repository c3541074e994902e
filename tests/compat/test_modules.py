"""mamba_ssm's layers and model by its own names: parameters, states and texts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo.compat
from zoo.compat.blocks import MHA, Block, GatedMLP, version_1
from zoo.compat.generation import InferenceParams, decode, sample
from zoo.compat.layer_norm import RMSNorm
from zoo.compat.mixer_seq_simple import MambaConfig, MambaLMHeadModel
from zoo.compat.mixers import Mamba, Mamba2, Mamba2Simple
from zoo.errors import ZooError
from zoo.layers import mamba, mamba2
from zoo.models.language.mamba import MambaLM

MAMBA2 = dict(layer="Mamba2", headdim=8, d_state=8, chunk_size=8)
ATTENTION = dict(causal=True, num_heads=4, num_heads_kv=2, d_conv=4, rotary_emb_dim=8)
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": dict(ssm_cfg=dict(d_state=8)),
    "mamba2": dict(ssm_cfg=MAMBA2),
    "mamba3": dict(ssm_cfg=dict(layer="Mamba3", headdim=8, d_state=8)),
    "layernorm": dict(ssm_cfg=MAMBA2, rms_norm=False, residual_in_fp32=False),
    "hybrid": dict(
        ssm_cfg=MAMBA2, d_intermediate=64, attn_layer_idx=[1], attn_cfg=ATTENTION,
        tie_embeddings=False,
    ),
}  # fmt: skip


def build(name: str, **more: Any) -> MambaLMHeadModel:
    torch.manual_seed(0)
    config = MambaConfig(d_model=32, n_layer=2, vocab_size=50, **CONFIGS[name])
    model = MambaLMHeadModel(config, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tokens(length: int = 21) -> Tensor:
    return torch.randint(0, 50, (2, length), generator=torch.Generator().manual_seed(1))


def test_names_lead_here() -> None:
    with zoo.compat.installed():
        import mamba_ssm
        from mamba_ssm import Mamba as TheirMamba
        from mamba_ssm import Mamba2 as TheirMamba2
        from mamba_ssm import MambaLMHeadModel as TheirModel
        from mamba_ssm.models.config_mamba import MambaConfig as TheirConfig
        from mamba_ssm.models.mixer_seq_simple import MixerModel, create_block
        from mamba_ssm.modules.block import Block as TheirBlock
        from mamba_ssm.modules.mamba2_simple import Mamba2Simple as TheirSimple
        from mamba_ssm.modules.mamba_simple import Block as OldBlock
        from mamba_ssm.modules.mha import MHA as TheirMHA
        from mamba_ssm.modules.mlp import GatedMLP as TheirMLP
        from mamba_ssm.utils.generation import GenerationMixin
        from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf

        assert mamba_ssm.modules.mamba_simple.Mamba is Mamba
    assert (TheirMamba, TheirMamba2, TheirSimple) == (Mamba, Mamba2, Mamba2Simple)
    assert (TheirModel, TheirConfig, TheirBlock) == (MambaLMHeadModel, MambaConfig, Block)
    assert (TheirMHA, TheirMLP, OldBlock) == (MHA, GatedMLP, version_1.Block)
    assert issubclass(TheirModel, GenerationMixin)
    assert all(map(callable, (MixerModel, create_block, load_config_hf, load_state_dict_hf)))


@pytest.mark.parametrize(
    "ours, base", [(Mamba, mamba.Mamba), (Mamba2, mamba2.Mamba2), (Mamba2Simple, mamba2.Mamba2)]
)
def test_layers_are_our_own(ours: Any, base: Any) -> None:
    """Every argument of our layer reaches it, and none changes its meaning on the way."""
    settings: dict[str, Any] = dict(
        d_state=5, d_conv=3, expand=3, dt_min=0.2, dt_max=0.3, dt_init_floor=0.25, bias=True,
        conv_bias=False,
    )  # fmt: skip
    if base is mamba.Mamba:
        settings |= dict(dt_rank=3, dt_init="constant", dt_scale=2.0)
    else:
        settings |= dict(headdim=4, ngroups=2, A_init_range=(2, 2), dt_limit=(0.1, 0.3))
        settings |= dict(conv_init=0.5, chunk_size=4)
    if ours is Mamba2:
        settings |= dict(d_ssm=16, D_has_hdim=True, norm_before_gate=True)
    own, layer = ours(8, **settings), base(8, **settings)
    assert {k: v.shape for k, v in own.state_dict().items()} == {
        k: v.shape for k, v in layer.state_dict().items()
    }
    dt = F.softplus(own.dt_proj.bias if ours is Mamba else own.dt_bias)
    assert dt.min() >= 0.2499 and dt.max() <= 0.3001
    layer.load_state_dict(own.state_dict())
    x = torch.randn(2, 9, 8)
    assert torch.equal(own(x), layer(x))
    known = inspect.signature(base.__init__).parameters
    lacking = set(known) - set(inspect.signature(ours.__init__).parameters)
    lacking -= {"eig_range"}  # our own, which no code of theirs names
    assert lacking <= {"d_ssm", "D_has_hdim", "rmsnorm", "norm_before_gate"}
    assert not lacking or ours is Mamba2Simple


def test_dtypes_of_parameters() -> None:
    half = torch.bfloat16
    dtypes = {k: v.dtype for k, v in Mamba(8, dtype=half, device="meta").state_dict().items()}
    assert {k for k, v in dtypes.items() if v == torch.float32} == {"A_log", "D"}
    for kind in (Mamba2, Mamba2Simple):
        layer = kind(8, headdim=4, dtype=half, device="meta")
        dtypes = {k: v.dtype for k, v in layer.state_dict().items()}
        assert {k for k, v in dtypes.items() if v == torch.float32} == {"D"}
    model = build("mamba", dtype=half)
    assert model(tokens()).logits.dtype == half
    unwanted = {n for n, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert unwanted == {f"backbone.layers.{i}.mixer.{n}" for i in (0, 1) for n in ("A_log", "D")}


def test_directions_of_vision_mamba() -> None:
    layer = Mamba(8, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.5)
    twin = mamba.Mamba(8, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.5)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, 8)
    assert torch.equal(layer(x), twin(x))


def test_learned_first_states() -> None:
    layer = Mamba2Simple(8, headdim=4, d_state=5, learnable_init_states=True)
    x = torch.randn(1, 1, 8)
    with torch.no_grad():
        zero = layer(x)
        torch.nn.init.normal_(layer.init_states)
        first = layer(x)
        assert torch.equal(layer(x), first), "a step does not change the parameter"
    assert not torch.allclose(zero, first)
    layer(torch.randn(2, 6, 8)).sum().backward()
    assert layer.init_states.grad.abs().min() > 0


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"mamba3"}))
def test_model_is_ours(name: str) -> None:
    """The same keys, so that a checkpoint of either loads in the other, and the same logits."""
    theirs = build(name)
    model = MambaLM(d_model=32, n_layer=2, vocab_size=50, **CONFIGS[name])
    model.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()).logits)
    torch.testing.assert_close(
        theirs(tokens(), num_last_tokens=2).logits, model(tokens()).logits[:, -2:]
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_reads_as_the_model_does(name: str) -> None:
    model = build(name).eval()
    ids = tokens()
    logits = model(ids).logits
    for _ in range(2):  # a second text begins with empty states
        out = model.generate(
            ids[:, :9], 21, teacher_outputs=ids, output_scores=True, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, ids)
        torch.testing.assert_close(
            torch.stack(out.scores, 1), logits[:, 8:-1], rtol=1e-4, atol=1e-4
        )
    states = InferenceParams(64, 2)
    for start, end in ((0, 9), (9, 10), (0, 7), (7, 8)):
        states.seqlen_offset = start
        found = model(ids[:, start:end], inference_params=states, num_last_tokens=1).logits
        torch.testing.assert_close(found[:, 0], logits[:, end - 1], rtol=1e-4, atol=1e-4)


def test_states_of_packed_texts() -> None:
    model = build("mamba2").eval()
    lengths = [7, 1, 12]
    texts = [tokens(n)[:1] for n in lengths]
    bounds = F.pad(torch.tensor([*lengths, 0]).cumsum(0), (1, 0))  # an empty one at the end
    states = InferenceParams(64, 4)
    packed = torch.cat([*texts, tokens(3)[:1]], dim=1)
    seq_idx = torch.repeat_interleave(torch.arange(4), torch.tensor([*lengths, 3]))[None].int()
    logits = model(packed, inference_params=states, seq_idx=seq_idx, cu_seqlens=bounds).logits
    states.seqlen_offset = 1
    new = torch.tensor([[3], [4], [5], [6]])
    after = model(new, inference_params=states).logits
    for row, text in enumerate(texts):
        start, end = bounds[row : row + 2].tolist()
        whole = model(torch.cat([text, new[row : row + 1]], dim=1)).logits[0]
        torch.testing.assert_close(logits[0, start:end], whole[:-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after[row, 0], whole[-1], rtol=1e-4, atol=1e-4)
    flat = model.backbone.layers[0].mixer
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(flat(x.flatten(0, 1), seqlen=5), flat(x).flatten(0, 1))
    with pytest.raises(ZooError, match="the sequences of a batch of 1, not of 2"):
        flat(x, cu_seqlens=bounds, inference_params=InferenceParams(9, 4))


def test_saved_model_is_read_again(tmp_path: Path) -> None:
    model = build("hybrid")
    model.save_pretrained(tmp_path)
    again = MambaLMHeadModel.from_pretrained(str(tmp_path))
    assert again.config == model.config
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    half = MambaLMHeadModel.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16


def test_initial_weights() -> None:
    settings = dict(d_model=32, n_layer=8, vocab_size=50, ssm_cfg=dict(bias=True))
    model = MambaLMHeadModel(MambaConfig(**settings), initializer_cfg=dict(initializer_range=0.5))
    assert 0.4 < model.lm_head.weight.std() < 0.6
    bound = (1 / 64) ** 0.5 / 8**0.5  # of kaiming_uniform with a = 5^½, over the root of the depth
    for block in model.backbone.layers:
        assert 0.9 * bound < block.mixer.out_proj.weight.abs().max() <= bound
        assert not block.mixer.in_proj.bias.any() and block.mixer.dt_proj.bias.abs().min() > 0


def test_blocks() -> None:
    x, stream = torch.randn(2, 5, 8, dtype=torch.bfloat16), torch.randn(2, 5, 8)
    for norm in (nn.LayerNorm, RMSNorm):
        block = version_1.Block(8, Mamba, norm, residual_in_fp32=True).to(torch.bfloat16)
        out, new = block(x, stream)
        assert (out.dtype, new.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(new, x.float() + stream)
        assert set(dict(block.named_children())) == {"norm", "mixer"}
    mlp = GatedMLP(8, 10, 6, activation=torch.relu, multiple_of=4)
    value, gate = mlp.fc1(stream).chunk(2, -1)
    assert value.shape[-1] == 12
    torch.testing.assert_close(mlp(stream), mlp.fc2(value * gate.relu()))
    assert GatedMLP(9, device="meta").fc2.in_features == 128


def test_sampling() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(4000, -1)
    assert sample(logits).unique().tolist() == [1]
    assert sample(logits, top_k=2).unique().tolist() == [1, 2]
    assert sample(logits, top_k=0, top_p=0.7).unique().tolist() == [1, 2]
    assert sample(logits, top_k=0, min_p=0.2).unique().tolist() == [1, 2]
    assert sample(logits, top_k=0, temperature=0.01).unique().tolist() == [1]
    share = sample(logits, top_k=0).bincount(minlength=4) / 4000
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.03, rtol=0)
    with pytest.raises(ZooError, match=r"top_p is a share of the probability, at most 1, not 2"):
        sample(logits, top_k=0, top_p=2.0)


def test_loop_of_generation(capsys: pytest.CaptureFixture[str]) -> None:
    model = build("mamba").eval()
    ids = tokens(3)
    greedy = decode(ids, model, 12).sequences
    assert torch.equal(greedy, model.generate(ids, 12)) and greedy.shape == (2, 12)
    stop = int(greedy[0, 5])
    ended = decode(ids[:1], model, 12, eos_token_id=stop).sequences
    place = 3 + greedy[0, 3:].tolist().index(stop)
    assert ended[0].tolist() == greedy[0, : place + 1].tolist()
    assert decode(ids, model, 12, vocab_size=9).sequences[:, 3:].max() < 9
    fresh = decode(ids[:1], model, 12, repetition_penalty=1e9).sequences[0].tolist()
    assert len(set(fresh[2:])) == 10, "no token comes twice"
    shown: list[list[int]] = []
    streamer: Any = type(
        "Streamer", (), {"put": lambda _, t: shown.append(t.flatten().tolist()), "end": len}
    )
    streamer.end = lambda _: shown.append([])
    decode(ids[:1], model, 5, streamer=streamer(), enable_timing=True)
    assert shown == [ids[0].tolist(), [int(greedy[0, 3])], [int(greedy[0, 4])], []]
    assert "Prompt processing + decoding time: " in capsys.readouterr().out


def test_what_is_not_provided() -> None:
    with pytest.raises(ZooError, match="not tensor-parallel; process_group must be None"):
        Mamba2(8, headdim=4, process_group=object())
    layer = Mamba(8)
    with pytest.raises(ZooError, match="Mamba: generation needs layer_idx in the constructor"):
        layer(torch.randn(1, 2, 8), InferenceParams(4, 1))
    with pytest.raises(ZooError, match="step takes one token at a time, not 2"):
        layer.step(torch.randn(1, 2, 8), *layer.allocate_inference_cache(1, 4))
    with pytest.raises(ZooError, match="activation is 'silu' or 'swish', not 'gelu'"):
        Mamba2Simple(8, headdim=4, activation="gelu")
    with pytest.raises(ZooError, match=r"ssm_cfg\.layer.*Mamba9"):
        MambaLMHeadModel(MambaConfig(8, n_layer=1, vocab_size=8, ssm_cfg=dict(layer="Mamba9")))
