"""Clover: the recurrence written out, the authors' files, and trees by joint probability."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.language_models import VOCAB, WIDTH, make_model
from zoo.checkpoints import save_state_dict
from zoo.decoding import generate
from zoo.decoding.heads import head_for
from zoo.decoding.levels import LevelDrafter, joint_draft
from zoo.decoding.methods.clover import Clover
from zoo.errors import ZooError
from zoo.models.decoding.clover import CloverHeads
from zoo.models.language._split_decoder import SplitDecoder, states_before_norm

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}


def wild(**settings) -> CloverHeads:
    heads = CloverHeads(**(SHAPE | settings)).eval()
    generator = torch.Generator().manual_seed(0)
    for p in heads.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return heads


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def takes_in(part: dict[str, Tensor], x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The attention decoder, head by head."""
    query = norm(x, part["input_layernorm.weight"], eps) @ part["q.weight"].T + part["q.bias"]
    key, value = (y @ part[f"{n}.weight"].T + part[f"{n}.bias"] for n in "kv")
    out = []
    for q, k, v in zip(query.split(4, -1), key.split(4, -1), value.split(4, -1), strict=True):
        weight = (q * k).sum(-1, keepdim=True) / (q.norm(dim=-1) * k.norm(dim=-1))[..., None]
        out.append(weight * v)
    return x + torch.cat(out, dim=-1)


@torch.no_grad()
def test_heads_of_the_second_version_are_the_recurrence_of_its_code() -> None:
    heads = wild(num_heads=3)
    states, embeds = torch.randn(2, 2, 6, 16, generator=torch.Generator().manual_seed(1))
    outs = heads(states, embeds)
    own, eps = heads.state_dict(), heads.config.rms_norm_eps

    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}."): t for k, t in own.items() if k.startswith(f"{name}.")}

    # before the augmenting layers the token after each goes in, behind them stands a norm
    first = takes_in(part("clover_head_mlp_rnn"), states, embeds, eps)
    for layer in heads.layers:
        positions = torch.arange(6)[None]
        rotary = heads.rotary_emb(first, position_ids=positions)
        mask = torch.full((6, 6), float("-inf")).triu(1)[None, None]
        first = layer(first, position_embeddings=rotary, attention_mask=mask)
    state = norm(first, own["clover_norm.weight"], eps)
    for i in range(3):
        state, token = state[:, : 6 - i], embeds[:, i:]
        if i == 0:
            out = F.linear(state, own["clover_head_mlp.weight"], own["clover_head_mlp.bias"])
        else:
            state = takes_in(part("clover_head_mlp_rnn2"), state, token, eps)
            both = torch.cat([state, token], dim=-1)
            out = F.linear(both, own["clover_head_mlp2.weight"], own["clover_head_mlp2.bias"])
        out = norm(out, own["clover_head_norm.weight"], eps)
        torch.testing.assert_close(outs[i, :, : 6 - i], out, atol=1e-5, rtol=1e-4)
        assert not outs[i, :, 6 - i :].any()


@torch.no_grad()
def test_heads_of_the_first_version() -> None:
    heads = wild(version=1, num_heads=2, num_layers=1, own_outputs=7)
    states, embeds = torch.randn(2, 1, 4, 16, generator=torch.Generator().manual_seed(1))
    state = heads.augment(embeds, states).last_hidden_state
    assert torch.equal(state, heads.augment(embeds + 1, states).last_hidden_state)
    own = heads.state_dict()
    part = {k.split(".", 1)[1]: t for k, t in own.items() if k.startswith("attention_decoder.")}
    for i in range(2):
        state = takes_in(part, state[:, : 4 - i], embeds[:, i:], heads.config.rms_norm_eps)
        block = [own[f"blocks.{i}.linear.{n}"] for n in ("weight", "bias")]
        expected = state + F.silu(F.linear(state, *block))
        torch.testing.assert_close(
            heads(states, embeds)[i, :, : 4 - i], expected, atol=1e-5, rtol=1e-4
        )
        logits = heads.logits(i, expected, torch.zeros(3, 16))
        assert torch.equal(logits, F.linear(expected, own[f"outputs.{i}.weight"]))


def test_fresh_heads_start_from_the_target() -> None:
    target = make_model("llama")
    torch.nn.init.uniform_(target.model.norm.weight)
    heads = CloverHeads.for_target(target, {"clover": {"num_heads": 2}})
    for layer in heads.layers:
        for key, t in target.model.layers[-1].state_dict().items():
            assert torch.equal(layer.state_dict()[key], t), key
    assert torch.equal(heads.clover_norm.weight, target.model.norm.weight)
    assert torch.equal(heads.clover_head_norm.weight, target.model.norm.weight)
    off = heads.clover_head_mlp2.weight.detach() - torch.eye(WIDTH, 2 * WIDTH)
    assert 0.005 < float(off.max()) <= 0.0101 and float(off.min()) < -0.005
    own = {"version": 1, "num_heads": 2, "num_layers": 1, "own_outputs": VOCAB}
    first = CloverHeads.for_target(target, {"clover": own})
    assert torch.equal(first.outputs[1].weight, target.lm_head.weight)


def test_the_authors_folder(tmp_path) -> None:
    target = make_model("llama")
    shape = {"hidden_size": WIDTH, "intermediate_size": 40, "num_attention_heads": 4}
    heads = wild(**shape, num_heads=2, num_layers=1, num_key_value_heads=2)
    copies = {"lm_head.weight": target.lm_head.weight.detach()}
    copies["clover_embed_tokens.weight"] = copies["lm_head.weight"].clone()
    save_state_dict(heads.state_dict() | copies, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, '
        '"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "clover": {"num_heads": 2, '
        '"num_layers": 1, "heads_coefficient": 1.0, "decay_coefficient": 0.7}}'
    )
    read = head_for((CloverHeads,), CloverHeads.for_target, tmp_path, target)
    assert read.version == 2 and read.num_heads == 2
    for key, t in heads.state_dict().items():
        assert torch.equal(read.state_dict()[key], t), key


@torch.no_grad()
def test_states_before_the_last_norm() -> None:
    target = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    with states_before_norm(target) as kept:
        after = target(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(target.model.norm(kept[0]), after)
    target(input_ids=ids)
    assert len(kept) == 1
    split, positions = SplitDecoder(target), torch.arange(3)[None]
    hidden = split.run(split.embed(ids, positions), 0, 3, positions, use_cache=False)
    torch.testing.assert_close(hidden, kept[0], atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_the_draft_is_what_the_heads_say_of_the_whole_text(version: int) -> None:
    target = make_model("llama")
    shape = {"version": version, "num_heads": 3, "num_layers": 1}
    heads = CloverHeads.for_target(target, {"clover": shape})
    steps = []
    method = Clover(heads, tree=[[0], [1], [1, 0], [1, 0, 0]])
    generate(
        target, torch.tensor([[1, 2, 3, 4]]), method, max_new_tokens=10,
        on_step=lambda run, draft, *_: steps.append((list(run.sequences[0]), draft.tokens[0])),
    )  # fmt: skip
    assert len(steps) > 2
    weight = target.lm_head.weight
    for text, tokens in (steps[0], steps[-1]):
        with states_before_norm(target) as kept:
            out = target(input_ids=torch.tensor([text]), output_hidden_states=True)
        states = kept[0] if version == 2 else out.hidden_states[-1]
        # the root is text[-1]; children 1 and 2, below 2 stand 3 and 4
        embeds = F.embedding(torch.tensor([[*text[1:], 0]]), weight)
        state = heads.augment(embeds, states).last_hidden_state[:, -2]
        expected = []
        for i, token in enumerate([text[-1], *tokens[2:4].tolist()]):
            said, state = heads.step(i, state, weight[token][None])
            expected.append(heads.logits(i, said, weight)[0])
        assert tokens[1:3].tolist() == expected[0].topk(2).indices.tolist()
        assert tokens[3:].tolist() == [int(logits.argmax()) for logits in expected[1:]]


class _Told(LevelDrafter):
    """Says fixed probabilities by the newest token."""

    def __init__(self, table: dict[int, list[float]]) -> None:
        self.table, self.asked = table, []

    def read(self, states: list[Tensor]) -> None:
        raise AssertionError

    def select(self, rows: list[int]) -> None:
        raise AssertionError

    def root(self) -> Tensor:
        return self.deeper(torch.tensor([[0], [5]]), torch.zeros(2, 1, dtype=torch.long))

    def deeper(self, tokens: Tensor, above: Tensor) -> Tensor:
        self.asked.append((tokens.tolist(), above.tolist()))
        return torch.tensor([[self.table[t] for t in row] for row in tokens.tolist()]).log()


def test_trees_by_joint_probability() -> None:
    run = SimpleNamespace(roots=[0, 5], target=SimpleNamespace(device="cpu"))
    table = {
        0: [0.0, 0.5, 0.3, 0.1, 0.1, 0.0],  # 3 and 4 have less than a quarter of the best
        1: [0.1, 0.2, 0.4, 0.3, 0.0, 0.0],
        2: [0.0, 0.0, 0.0, 0.0, 0.98, 0.02],
        5: [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        3: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        4: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    }
    drafter = _Told(table)
    draft = joint_draft(run, drafter, size=4, depth=3, top_p=0.95, ratio=0.25)
    # 1 and 2; of 1-2 (0.2), 1-3 (0.15), 1-1 (0.1), 2-4 (0.294) the best two
    assert draft.trees[0].parents == (-1, 0, 0, 1, 2)
    assert draft.tokens[0].tolist() == [0, 1, 2, 2, 4]
    # alone with 1, then its three candidates 2, 3 and 1, which fill the tree
    assert draft.trees[1].parents == (-1, 0, 1, 1, 1)
    assert draft.tokens[1].tolist() == [5, 1, 2, 3, 1]
    assert drafter.asked[1] == ([[1, 2], [1, 0]], [[0, 0], [0, 0]])
    assert len(drafter.asked) == 2  # nobody is asked below a full tree
    fewest = joint_draft(run, drafter, size=4, depth=3, top_p=0.35, ratio=0.0)
    assert fewest.trees[0].parents == (-1, 0, 1, 2)  # one candidate a node, three levels
    assert fewest.tokens[0].tolist() == [0, 1, 2, 4]


def test_what_does_not_fit_is_said() -> None:
    ids, target = torch.tensor([[1, 2, 3]]), make_model("llama")
    with pytest.raises(ZooError, match="for states of 16 numbers, the target's have 32"):
        generate(target, ids, "clover", heads=wild())
    with pytest.raises(ZooError, match="expected version 1 or 2"):
        CloverHeads(version=3, **SHAPE)
    with pytest.raises(ZooError, match="heads of Clover-2 have none"):
        CloverHeads(own_outputs=7, **SHAPE)
    with pytest.raises(ZooError, match="expected one of them at most"):
        Clover(wild(), tree=[[0]], size=4)
    with pytest.raises(ZooError, match="top_p 0"):
        Clover(wild(), top_p=0.0)
    with pytest.raises(ZooError, match="needs a target that is decoded by tree attention"):
        generate(make_model("mamba"), ids, "clover", heads=wild())
