"""Draft heads: their published sizes, their authors' files, and a step that moves every part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.language_models import VOCAB, WIDTH, make_model
from zoo.decoding.heads import head_for, save_head
from zoo.decoding.methods.hydra import KINDS, build_heads
from zoo.errors import ZooError
from zoo.models.decoding._hydra_attention import HydraCrossHead, HydraEagleHead
from zoo.models.decoding.hydra import HydraHeads
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.decoding.specdec_pp import AcceptanceHead

LAYER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("medusa_vicuna_7b", {"num_heads": 1}, 147_853_312),
        ("medusa_vicuna_7b", {"num_heads": 4}, 591_413_248),
        ("medusa_vicuna_7b", {}, 739_266_560),
        ("medusa_vicuna_13b", {}, 950_297_600),
        ("medusa_vicuna_33b", {}, 1_286_504_960),
        ("hydra_vicuna_7b", {"arch": "mlp", "num_layers": 1}, 994_210_816),
        ("hydra_vicuna_7b", {}, 1_263_723_520),
        ("hydra_vicuna_13b", {}, 1_811_619_840),
        ("hydra_vicuna_33b", {}, 2_804_906_496),
        ("hydra_eagle_attn_vicuna_7b", {}, 235_941_888),
        ("hydra_cross_attn_vicuna_7b", {}, 202_383_360),
        ("kangaroo_vicuna_7b", {}, 67_117_056),
        ("kangaroo_vicuna_13b", {}, 104_867_840),
        ("specdec_pp_llama2_chat_7bx70b", {}, 16_789_506),
    ],
)
def test_published_sizes(name: str, overrides: dict, count: int) -> None:
    with torch.device("meta"):
        head = zoo.create_model(name, **overrides)
    assert sum(p.numel() for p in head.parameters()) == count


def medusa() -> tuple[nn.Module, list[Tensor]]:
    return MedusaHeads(WIDTH, VOCAB, 3, 2), [torch.randn(2, 5, WIDTH)]


def hydra(arch: str, **settings) -> tuple[nn.Module, list[Tensor]]:
    heads = HydraHeads(WIDTH, VOCAB, 3, 2, arch=arch, prefix=LAYER, **settings)
    return heads, [torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)]


HEADS = {
    "medusa": medusa,
    "hydra": lambda: hydra("mlp"),
    "hydra++": lambda: hydra("prefix-mlp"),
    "ungrounded": lambda: hydra("prefix-mlp", grounded=False),
    "cross-attn": lambda: (HydraCrossHead(**LAYER), [torch.randn(2, 5, WIDTH) for _ in range(2)]),
    "eagle-attn": lambda: (HydraEagleHead(**LAYER), [torch.randn(2, 5, WIDTH) for _ in range(2)]),
    "kangaroo": lambda: (KangarooAdapter(**LAYER), [torch.randn(2, 5, WIDTH)]),
    "specdec_pp": lambda: (AcceptanceHead(WIDTH), [torch.randn(2, 5, WIDTH)]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_step_moves_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    head, inputs = HEADS[name]()
    with torch.no_grad():
        for p in head.parameters():  # some start at zero
            p.add_(0.1 * torch.randn_like(p))
    out = head(*inputs)
    out = getattr(out, "last_hidden_state", out)
    out = out if isinstance(out, Tensor) else out[0]
    assert out.shape[-3:-1] == (2, 5) and out.isfinite().all()
    before = {key: p.detach().clone() for key, p in head.named_parameters()}
    (out * torch.randn_like(out)).sum().backward()
    torch.optim.SGD(head.parameters(), 0.1).step()
    for key, p in head.named_parameters():
        assert not torch.equal(p, before[key]), key


@pytest.mark.parametrize("name", ["cross-attn", "eagle-attn", "kangaroo", "hydra++"])
def test_later_positions_change_nothing_before_them(name: str) -> None:
    torch.manual_seed(0)
    head, inputs = HEADS[name]()
    head.eval()

    def states() -> Tensor:
        if name == "hydra++":
            return head.states(inputs[0])
        return head(*inputs).last_hidden_state

    first = states()
    for x in inputs:
        x[:, 3:] += 1
    again = states()
    torch.testing.assert_close(again[:, :3], first[:, :3])
    assert not torch.allclose(again[:, 3:], first[:, 3:])


def official(head: nn.Module, rename) -> dict[str, Tensor]:
    """The file of a head as its authors write it, with the copies that they leave in it."""
    copies = {"lm_head.weight": torch.ones(1), "input_embed_fn.weight": torch.ones(1)}
    return {rename(key): t.clone() for key, t in head.state_dict().items()} | copies


def written(folder: Path, file: str, tensors: dict[str, Tensor], config: dict) -> Path:
    torch.save(tensors, folder / file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same(head: nn.Module, other: nn.Module) -> None:
    assert head.state_dict().keys() == other.state_dict().keys()
    for key, t in head.state_dict().items():
        assert torch.equal(t, other.state_dict()[key]), key


def test_medusas_files(tmp_path) -> None:
    target = make_model("llama")
    head = MedusaHeads(WIDTH, VOCAB, 3)
    own = {key.removeprefix("heads."): t for key, t in head.state_dict().items()}
    # the old configuration says 2, whatever the file holds
    folder = written(tmp_path, "medusa_lm_head.pt", own, {"medusa_num_heads": 2})
    assert_same(head_for((MedusaHeads,), MedusaHeads.for_target, folder, target), head)

    # ours, with a tensor too many: strict loading will say so
    ours = head.state_dict() | {"lm_head.weight": torch.ones(1)}
    assert head.remap_state_dict(ours) == ours

    # Medusa-2: the whole model is one checkpoint
    whole = {f"medusa_head.{key}": t for key, t in own.items()} | target.state_dict()
    folder = written(tmp_path, "medusa_lm_head.pt", whole, {"medusa_num_heads": 3})
    assert_same(head_for((MedusaHeads,), MedusaHeads.for_target, folder, target), head)

    # the later training has no output layers and uses the target's
    blocks = {key: t for key, t in own.items() if "linear" in key}
    folder = written(tmp_path, "medusa_lm_head.pt", blocks, {"medusa_num_heads": 3, "version": "2"})
    loaded = head_for((MedusaHeads,), MedusaHeads.for_target, folder, target)
    assert torch.equal(loaded.heads[2][-1].weight, target.lm_head.weight)
    assert torch.equal(loaded.heads[2][0].linear.weight, head.heads[2][0].linear.weight)
    with pytest.raises(ZooError, match=r"missing.*heads\.0\.1\.weight"):
        zoo.load_pretrained(MedusaHeads(WIDTH, VOCAB, 3), folder)


@pytest.mark.parametrize("name", ["hydra", "hydra++", "ungrounded", "cross-attn", "eagle-attn"])
def test_hydras_files(name: str, tmp_path) -> None:
    target = make_model("llama")
    head, _ = HEADS[name]()
    tensors = official(head, lambda key: key)
    arch = head.config["arch"] if isinstance(head, HydraHeads) else head.arch
    config = {"hydra_head_arch": arch, "hydra_num_layers": 2, "hydra_num_heads": 4}
    config["grounded_heads"] = name != "ungrounded"
    if arch == "prefix-mlp":
        tensors["prefix_embeding_layer.embed_tokens.weight"] = torch.ones(VOCAB, WIDTH)
        tensors["prefix_embeding_layer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    folder = written(tmp_path, "hydra_lm_head.pt", tensors, config)
    assert_same(head_for(KINDS, build_heads, folder, target), head)
    save_head(head, tmp_path / "ours")
    assert_same(head_for(KINDS, build_heads, tmp_path / "ours", target), head)


def test_kangaroos_file(tmp_path) -> None:
    head = KangarooAdapter(**LAYER)
    tensors = official(head, lambda key: key)
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    folder = written(tmp_path, "pytorch_model.bin", tensors, {"hidden_size": WIDTH})
    loaded = head_for((KangarooAdapter,), KangarooAdapter.for_target, folder, make_model("llama"))
    assert_same(loaded, head)


def test_specdec_pps_file_may_name_the_shared_block_once(tmp_path) -> None:
    head = AcceptanceHead(WIDTH)
    tensors = head.state_dict()
    assert set(tensors) == {
        f"model.{i}.linear.{n}" for i in range(3) for n in ("weight", "bias")
    } | {
        "model.3.weight",
        "model.3.bias",
    }
    kept = {key: t for key, t in tensors.items() if not key.startswith(("model.0", "model.2"))}
    filled = head.remap_state_dict(kept)
    assert filled.keys() == tensors.keys() and all(filled[k].equal(t) for k, t in tensors.items())
    config = {"hidden_size": WIDTH, "num_layers": 3}
    folder = written(tmp_path, "pytorch_model.bin", kept, config)
    loaded = head_for((AcceptanceHead,), AcceptanceHead.for_target, folder, make_model("llama"))
    assert_same(loaded, head)


def test_heads_without_settings_are_the_papers() -> None:
    target = make_model("llama")
    medusa = MedusaHeads.for_target(target)
    assert medusa.config == {
        "d_model": WIDTH, "vocab_size": VOCAB, "num_heads": 5, "num_layers": 1
    }  # fmt: skip
    assert torch.equal(medusa.heads[4][-1].weight, target.lm_head.weight)
    hydra = HydraHeads.for_target(target).config
    assert hydra["num_heads"] == 4 and hydra["num_layers"] == 1 and hydra["dropout"] == 0
    assert hydra["arch"] == "mlp" and hydra["grounded"]
    # what the authors leave out of their file is False
    assert not HydraHeads.for_target(target, {"hydra_head_arch": "mlp"}).config["grounded"]
    assert HydraHeads.for_target(target, {"arch": "prefix-mlp"}).config["dropout"] == 0.2
    assert KangarooAdapter.for_target(target).config.exit_layer == 2
    acceptance = AcceptanceHead.for_target(target)
    assert acceptance.config == {"hidden_size": WIDTH, "num_layers": 3}
    with torch.device("meta"):
        exits = [
            zoo.create_model(f"kangaroo_vicuna_{size}").config.exit_layer for size in ("7b", "13b")
        ]
    assert exits == [2, 3]


def test_heads_that_are_not_there_or_of_another_kind(tmp_path) -> None:
    target = make_model("llama")
    with pytest.raises(ZooError, match="there are no heads 'nothing'"):
        head_for((MedusaHeads,), MedusaHeads.for_target, "nothing", target)
    save_head(MedusaHeads(WIDTH, VOCAB, 2), tmp_path)
    with pytest.raises(ZooError, match="holds MedusaHeads, expected HydraHeads or"):
        head_for(KINDS, build_heads, tmp_path, target)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ZooError, match="is no JSON"):
        head_for((MedusaHeads,), MedusaHeads.for_target, tmp_path, target)
    with pytest.raises(ZooError, match="arch 'x'"):
        HydraHeads(WIDTH, VOCAB, arch="x")
