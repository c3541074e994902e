"""A decoder cut between its layers gives what it gives whole, and is left as it was."""

import pytest
import torch

from tests.language_models import VOCAB, make_model
from zoo.errors import ZooError
from zoo.models.language._split_decoder import (
    SplitDecoder,
    _replaced,
    cache_name,
    states_before_norm,
)

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
POSITIONS = torch.arange(5).expand(2, -1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_parts_are_the_model(kind):
    model = make_model(kind)
    split = SplitDecoder(model)
    assert len(split) == 3 and not any("forward" in vars(layer) for layer in split.layers)
    with states_before_norm(model) as kept:
        whole = model(input_ids=IDS, output_hidden_states=True)
    assert len(kept) == 1
    hidden = split.embed(IDS, POSITIONS)
    torch.testing.assert_close(hidden, whole.hidden_states[0])
    one = split.run(hidden, 0, 1, POSITIONS, use_cache=False)
    torch.testing.assert_close(one, whole.hidden_states[1])
    last = split.run(one, 1, 3, POSITIONS, use_cache=False)
    torch.testing.assert_close(last, kept[0])
    torch.testing.assert_close(split.logits(last), whole.logits)
    torch.testing.assert_close(split.run(hidden, 1, 1, POSITIONS, use_cache=False), hidden)
    model(input_ids=IDS)
    assert len(kept) == 1  # the hook is gone
    assert not any("forward" in vars(layer) for layer in split.layers)


def test_a_forward_of_a_layers_own_comes_back():
    model = make_model("llama")
    layer = model.model.layers[1]
    own = layer.forward
    layer.forward = own
    SplitDecoder(model)
    assert vars(layer)["forward"] == own


def test_a_vocabulary_smaller_than_the_trial():
    assert len(SplitDecoder(make_model("llama", vocab_size=3))) == 3


def test_a_model_that_is_not_its_parts_is_refused():
    model = make_model("llama")
    lm_head = model.lm_head.forward
    calls = []

    def changing(x):  # another answer each time
        calls.append(x)
        return lm_head(x) + 0.1 * len(calls) * torch.arange(VOCAB)

    model.lm_head.forward = changing
    with pytest.raises(ZooError, match=r"cannot be cut .*the logits of its parts are off by"):
        SplitDecoder(model)


def test_layers_outside_a_part_return_as_many_values():
    layers, x = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2)), torch.ones(1)
    with _replaced(layers, 0, 0, None, 3):
        assert layers[1](x) == (x, None, None)
    with _replaced(layers, 0, 0, None, None):
        assert layers[1](x) is x


def test_names_of_the_cache():
    assert cache_name(lambda x, past_key_values=None: x) == "past_key_values"
    assert cache_name(lambda cache_params, cache: None) == "cache"
    with pytest.raises(ZooError, match="takes no cache: expected an argument cache, past_key"):
        cache_name(lambda x: x)
