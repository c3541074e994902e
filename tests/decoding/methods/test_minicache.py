"""MiniCache: the arithmetic, what decoding meets in it, and how many bytes it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate
from zoo.decoding.merged_cache import (
    MiniCache,
    dequantise,
    limits,
    merge,
    quantise,
    restore,
    slerp,
)
from zoo.decoding.methods.minicache import MiniCacheDecoding
from zoo.errors import ZooError

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])


def states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_slerp_goes_round_the_circle() -> None:
    first, last = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0.0, 0.25, 0.6, 1.0):
        angle = torch.tensor(t * torch.pi / 2)
        torch.testing.assert_close(slerp(first, last, t), torch.stack([angle.cos(), angle.sin()]))
    assert torch.equal(slerp(first, first, 0.3), first)
    near = torch.nn.functional.normalize(torch.tensor([1.0, 1e-5]), dim=0)
    assert float(slerp(first, near, 0.5).norm()) == pytest.approx(1.0)


def test_merged_states_have_one_direction_and_their_own_lengths() -> None:
    lower, upper = states(2, 3, 5, 8), 2 * states(2, 3, 5, 8, seed=1)
    none = torch.full((2, 3), -2.0)
    made = merge(lower, upper, none, 0.6)
    assert not len(made.index)
    read = [restore(made, side) for side in (0, 1)]
    for found, true in zip(read, (lower, upper), strict=True):
        torch.testing.assert_close(found.norm(dim=-1), true.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(*read, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    # the angle to the lower layer's is 0.6 of the whole
    whole = torch.nn.functional.cosine_similarity(lower, upper, dim=-1).acos()
    part = torch.nn.functional.cosine_similarity(lower, read[0], dim=-1).acos()
    torch.testing.assert_close(part, 0.6 * whole, atol=1e-3, rtol=1e-3)
    mean = merge(lower, upper, none, how="mean")
    torch.testing.assert_close(restore(mean, 0), (lower + upper) / 2)
    longer = restore(merge(lower, upper, none, how="max_norm"), 1)
    expected = torch.where((upper.norm(dim=-1) > lower.norm(dim=-1))[..., None], upper, lower)
    torch.testing.assert_close(longer, expected)


def test_states_that_differ_most_are_kept() -> None:
    lower = states(1, 1, 20, 8)
    upper = lower + 0.1 * states(1, 1, 20, 8, seed=1)
    upper[:, :, [4, 11]] *= -1
    for limit in (limits(lower, upper, 0.05), limits(lower, upper, 0.0, ratio=0.1)):
        made = merge(lower, upper, limit)
        assert made.index.tolist() == [4, 11]
        assert torch.equal(restore(made, 0)[:, :, [4, 11]], lower[:, :, [4, 11]])
        assert torch.equal(restore(made, 1)[:, :, [4, 11]], upper[:, :, [4, 11]])
        assert float((restore(made, 1) - upper).abs().max()) < 0.4
    everything = merge(lower, upper, limits(lower, upper, 2.0))
    assert len(everything.index) == 20
    assert torch.equal(restore(everything, 0), lower) and torch.equal(restore(everything, 1), upper)
    # opposed states have no direction between them, and zeros break nothing
    assert merge(lower, -lower, torch.full((1, 1), -2.0)).index.tolist() == list(range(20))
    zero = lower.clone()
    zero[:, :, 3] = 0
    assert torch.isfinite(limits(zero, upper, 0.05)).all()
    assert torch.isfinite(restore(merge(zero, upper, limits(zero, upper, 0.05)), 0)).all()
    first = merge(lower, lower, torch.full((1, 1), -2.0), apart=torch.arange(20) == 0)
    assert first.index.tolist() == [0]


def test_four_bits() -> None:
    values = states(2, 3, 5, 64)
    packed = quantise(values)
    assert packed.codes.shape == (2, 3, 5, 32) and packed.scale.shape == (2, 3, 5, 2)
    back = dequantise(packed)
    step = packed.scale.repeat_interleave(32, dim=-1)
    assert ((back - values).abs() <= step / 2 + 1e-6).all()
    groups = values.unflatten(-1, (2, 32))
    torch.testing.assert_close(back.unflatten(-1, (2, 32)).amin(-1), groups.amin(-1))
    assert torch.equal(dequantise(quantise(torch.ones(1, 4))), torch.ones(1, 4))


def filled(cache: MiniCache, slots: int, heads: int = 2, width: int = 16) -> list[list[Tensor]]:
    """Give each layer states of so many slots of one text, and merge them."""
    given = []
    for layer in range(len(cache.layers)):
        pair = [states(1, heads, slots, width, seed=9 * layer + i) for i in (0, 1)]
        given.append(pair)
        cache.update(*pair, layer)
    cache.settle(slots)
    return given


@pytest.mark.parametrize("granularity", ["token", "head"])
@pytest.mark.parametrize("bits", [0, 4])
def test_bytes_are_those_of_what_is_stored(granularity: str, bits: int) -> None:
    cache = MiniCache(4, ratio=0.1, granularity=granularity, bits=bits)
    filled(cache, 40)
    own, whole = cache.sizes()
    plain = 2 * 40 * 32 * 4  # keys and values of one layer, in float32
    groups = 1 if granularity == "token" else 2
    # of keys or values: four bytes a number, or half a byte and two numbers for each group of 32 or
    # of a head
    direction = 40 * (16 + 2 * 4 * groups) if bits else plain // 2
    pair = cache.pairs[0]
    kept = sum(len(part.index) for part in pair.parts)
    assert 2 * 4 * groups <= kept <= 2 * 5 * groups  # a tenth, and the first token
    per_kept = 4 + 2 * 4 * 32 // groups
    lengths = 2 * 2 * 40 * groups * 4
    expected = 2 * plain + 2 * direction + lengths + kept * per_kept
    assert (own, whole) == (expected, 4 * plain)
    assert pair.share_kept() == pytest.approx(kept / (2 * 40 * groups))


def test_layers_below_the_start_and_the_window_stand_as_they_are() -> None:
    cache = MiniCache(5, start=2, window=3)  # layer 2 has no partner
    given = filled(cache, 10)
    assert [layer.get_seq_length() for layer in cache.layers] == [10] * 5
    assert cache.get_mask_sizes(4, 4) == (14, 0)
    for layer, own in enumerate(given):
        read = cache.update(*(t[:, :, :0] for t in own), layer)
        for now, was in zip(read, own, strict=True):
            assert torch.equal(now[:, :, 7:], was[:, :, 7:])  # the window
            assert torch.equal(now[:, :, 0], was[:, :, 0])  # the first token
            assert torch.equal(now, was) == (layer < 3)


def test_rows_are_selected_with_what_is_kept_of_them() -> None:
    cache = MiniCache(2, start=0, gamma=0.3, granularity="head")
    for layer in range(2):
        cache.update(*(states(3, 2, 12, 8, seed=5 * layer + i) for i in (0, 1)), layer)
    cache.settle(12)
    before = cache.pairs[0].restored(1)
    assert len(cache.pairs[0].parts[0].index) > 6
    cache.select(torch.tensor([2, 0]), 12)
    for was, now in zip(before, cache.pairs[0].restored(1), strict=True):
        assert torch.equal(was[[2, 0]], now)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_are_merged_as_they_are_decided(kind: str) -> None:
    model = make_model(kind, layers=4)
    plain = generate(model, IDS, max_new_tokens=12)
    method = MiniCacheDecoding(gamma=0.0)
    out = generate(model, IDS, method, max_new_tokens=12)
    # the last token is not read any more
    assert [pair.count for pair in method._cache.pairs] == [IDS.shape[1] + 11]
    report = out.report
    assert report["plain_cache_bytes"] == 4 * 2 * 2 * 18 * (16 if kind == "llama" else 32) * 4
    assert report["cache_bytes"] < report["plain_cache_bytes"]
    assert report["compression"] == report["plain_cache_bytes"] / report["cache_bytes"]
    assert 0 < report["share_kept_apart"] < 1
    kept = generate(model, IDS, "minicache", max_new_tokens=12, start=0, gamma=2.0)
    assert kept.new_tokens == plain.new_tokens and kept.report["share_kept_apart"] == 1
    nothing = generate(model, IDS, "minicache", max_new_tokens=12, start=4)
    assert nothing.new_tokens == plain.new_tokens and nothing.report["compression"] == 1


def test_what_is_attended_to_is_what_was_merged() -> None:
    """The second pass after a prompt, against a model whose keys and values are replaced."""
    model = make_model("llama", layers=4)
    cache = MiniCache(4, gamma=0.1)
    found = []
    generate(
        model, IDS[:1], "plain", max_new_tokens=3, cache=cache,
        on_step=lambda run, draft, scores, verdicts: found.append(scores.logits[0, 0]),
    )  # fmt: skip
    own = model(input_ids=IDS[:1, :-1], use_cache=True).past_key_values
    layers = [[own.layers[i].keys, own.layers[i].values] for i in range(4)]
    for i in (0, 1):
        lower, upper = (layers[side][i].transpose(1, 2).flatten(2)[:, None] for side in (2, 3))
        made = merge(lower, upper, limits(lower, upper, 0.1), apart=torch.arange(6) == 0)
        for side in (2, 3):
            read = restore(made, side - 2)[:, 0].unflatten(-1, (2, -1)).transpose(1, 2)
            assert side < 2 or not torch.equal(read, layers[side][i])
            setattr(own.layers[side], ("keys", "values")[i], read)
    expected = model(input_ids=IDS[:1, -1:], past_key_values=own).logits[0, 0]
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=1e-4)


def test_any_method_takes_the_cache() -> None:
    model = make_model("llama", layers=4)
    plain = generate(model, IDS, max_new_tokens=12)
    cache = MiniCache(4, start=0, gamma=2.0)
    out = generate(model, IDS, "token_recycling", max_new_tokens=12, cache=cache)
    assert out.new_tokens == plain.new_tokens and out.acceptance.accepted > 0
    assert all(pair.count > IDS.shape[1] for pair in cache.pairs)
    with pytest.raises(ZooError, match="holds a text already"):
        generate(model, IDS, max_new_tokens=2, cache=cache)


def test_what_does_not_fit_is_said() -> None:
    for wrong, message in (
        ({"start": 9}, "start is 9: expected 0 to 4"),
        ({"t": 2.0}, "t 2.0"),
        ({"granularity": "layer"}, "granularity 'layer'"),
        ({"how": "x"}, "how is 'x'"),
    ):
        with pytest.raises(ZooError, match=message):
            MiniCache(4, **wrong)
    with pytest.raises(ZooError, match="needs a target that is decoded by tree attention"):
        generate(make_model("mamba"), IDS % VOCAB, "minicache")
    with pytest.raises(ZooError, match="a cache was given, but MambaForCausalLM is decoded by"):
        generate(make_model("mamba"), IDS, cache=MiniCache(2))
