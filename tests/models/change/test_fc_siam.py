import pytest
import torch

import zoo
from tests.dense import count
from zoo.errors import ZooError


@pytest.mark.parametrize(
    ("name", "parameters"), [("fc_siam_conc", 1_545_986), ("fc_siam_diff", 1_350_146)]
)
def test_parameter_count_and_names(name, parameters):
    assert count(name) == parameters
    names = zoo.create_model(name).state_dict()
    assert {"conv43.weight", "bn33d.running_mean", "upconv1.weight", "conv11d.bias"} <= set(names)
    assert "bn11d.weight" not in names


def test_wrong_sizes_are_said():
    model = zoo.create_model("fc_siam_conc")
    with pytest.raises(ZooError, match="sides from 16 on"):
        model(*torch.zeros(2, 1, 3, 8, 32))
