import pytest
import torch

import zoo
from zoo.errors import ZooError


@pytest.mark.parametrize("name", ["fc_siam_conc", "fc_siam_diff"])
def test_official_names(name):
    names = zoo.create_model(name).state_dict()
    assert {"conv43.weight", "bn33d.running_mean", "upconv1.weight", "conv11d.bias"} <= set(names)
    assert "bn11d.weight" not in names


def test_wrong_sizes_are_said():
    model = zoo.create_model("fc_siam_conc")
    with pytest.raises(ZooError, match="sides from 16 on"):
        model(*torch.zeros(2, 1, 3, 8, 32))
