import pytest
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.sinet import SINet, uncertainty


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        ("sinet", {}, 86_910),
        ("sinet", {"num_classes": 1}, 86_684),
        ("sinet_cityscapes", {}, 119_418),
    ],
)
def test_parameter_count(name, changes, parameters):
    assert count(name, **changes) == parameters


def test_encoder_alone_has_86764_parameters():
    with torch.device("meta"):
        encoder = SINet().encoder
    assert sum(p.numel() for p in encoder.parameters()) == 86_764


def test_checkpoints_have_the_authors_keys():
    state = SINet().state_dict()
    assert len(state) == 393
    shapes = {
        "encoder.level1.conv.weight": (12, 3, 3, 3),
        "encoder.level2_0.conv.1.dense.0.weight": (12, 12),
        "encoder.level2_0.conv.2.weight": (16, 12, 1, 1),
        "encoder.level2.0.c1.conv.weight": (24, 8, 1, 1),
        "encoder.level3.7.d2.act_conv1x1.1.weight": (48, 48, 1, 1),
        "encoder.classifier.conv.weight": (2, 144, 1, 1),
        "level2_C.conv.weight": (2, 48, 1, 1),
        "classifier.1.weight": (2, 2, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(zoo.create_model("sinet_cityscapes").state_dict()) == 629


def test_shapes_and_learning():
    model = SINet()
    image = torch.randn(2, 3, 64, 96)
    assert model.encoder(image).shape == (2, 2, 8, 12)
    check_learning(model, lambda: model(image), (2, 2, 64, 96))
    street = zoo.create_model("sinet_cityscapes", num_classes=5)
    image = torch.randn(2, 3, 128, 128)
    logits, coarse = street(image)
    assert logits.shape == (2, 5, 64, 64) and coarse.shape == (2, 5, 8, 8)
    assert street.eval()(image).shape == (2, 5, 64, 64)


def test_detail_passes_only_where_the_coarse_prediction_is_uncertain():
    logits = torch.tensor([[9.0, 0.0], [-9.0, 0.0]])[None, :, :, None]  # sure, then unsure
    gate = uncertainty(logits, "softmax")
    assert gate[0, 0, 0, 0] < 1e-6 and gate[0, 0, 1, 0] == 0.5
    assert torch.equal(uncertainty(logits, "open"), torch.ones(1, 1, 2, 1))
    one = torch.tensor([6.0, 0.0, -6.0])[None, None, :, None]
    assert torch.equal(uncertainty(one, "softmax"), torch.zeros_like(one))  # as published
    assert uncertainty(one, "sigmoid")[0, 0, :, 0].argmax() == 1


def test_weight_decay_as_the_authors_have_it():
    model = SINet()
    dense, depthwise, rest = model.weight_decay_groups(2e-4)
    assert [group["weight_decay"] for group in (dense, depthwise, rest)] == [2e-4, 0.0, 2e-6]
    assert sum(len(group["params"]) for group in (dense, depthwise, rest)) == len(
        list(model.parameters())
    )


def test_wrong_size_is_said():
    with pytest.raises(ZooError, match=r"100x96.*multiples of 32"):
        SINet()(torch.zeros(1, 3, 100, 96))
