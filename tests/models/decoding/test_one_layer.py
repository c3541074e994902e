"""What a head's layer takes over from its target."""

from types import SimpleNamespace

import pytest
import torch

from zoo.errors import ZooError
from zoo.models.decoding._one_layer import OneLayerModel, layer_config, layer_settings

SHAPE = {
    "hidden_size": 200,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-4,
    "max_position_embeddings": 77,
}
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}


def settings(given=None, **config):
    return layer_settings(SimpleNamespace(config=SimpleNamespace(**config)), given)


def test_settings_are_the_targets_unless_given():
    rope = {"rope_parameters": DEFAULT}
    assert settings(**SHAPE, **rope, vocab_size=9) == SHAPE | rope
    assert settings({"num_key_value_heads": 1, "other": 5}, **SHAPE, **rope) == {
        **SHAPE, **rope, "num_key_value_heads": 1
    }  # fmt: skip


@pytest.mark.parametrize(("width", "heads"), [(200, 3), (64, 1), (32, 1)])
def test_a_target_without_attention(width, heads):
    assert settings(hidden_size=width) == {"hidden_size": width, "num_attention_heads": heads}


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        (DEFAULT | {"partial_rotary_factor": 0.5}, DEFAULT),
        ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
        *(
            ({"rope_type": kind, "factor": 2.0}, {"rope_type": kind, "factor": 2.0})
            for kind in ("dynamic", "linear", "llama3", "yarn")
        ),
        ({"sliding_attention": {"rope_theta": 1.0}, "full_attention": DEFAULT}, DEFAULT),
        ({"one": DEFAULT, "two": {"rope_theta": 1.0}}, DEFAULT),
        ({"rope_type": "longrope", "rope_theta": 5.0, "long_factor": [1.0]},
         {"rope_type": "default", "rope_theta": 5.0}),
        ({"rope_type": "longrope"}, {"rope_type": "default", "rope_theta": 10000.0}),
    ],
)  # fmt: skip
def test_rotary_settings(parameters, kept):
    assert settings(**SHAPE, rope_parameters=parameters)["rope_parameters"] == kept


def test_settings_that_no_layer_has_are_said():
    known = {"hidden_size": 8, "head_dim": 4, "mlp_bias": True}
    assert layer_config(known) == known
    with pytest.raises(ZooError, match="hiden_size is no setting of a head's layer"):
        layer_config({"hiden_size": 8})


def test_positions_and_mask():
    model = OneLayerModel(hidden_size=16, num_attention_heads=2, num_key_value_heads=2)
    assert model.config.num_hidden_layers == 1 and model._supports_attention_backend
    states = torch.zeros(2, 3, 16)
    assert model.positions(states, None).tolist() == [[0, 1, 2]]
    given = torch.tensor([[4, 5, 6]])
    assert model.positions(states, given) is given
    padded = torch.tensor([[0, 1, 1], [1, 1, 1]])
    mask = model.causal_mask(states, model.positions(states, None), padded, None)
    assert mask.shape == (2, 1, 3, 3)
    assert mask[0, 0, 2].tolist() == [False, True, True]
    assert mask[1, 0].tolist() == torch.ones(3, 3).tril().bool().tolist()
