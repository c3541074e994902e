import pytest
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.medusa_medical import Medusa

SMALL = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16], "stem_type": "", "zero_init_last": False},
    "body_widths": [4, 8],
    "global_chans": 4,
    "body_size": 32,
}


@pytest.mark.parametrize(
    ("attention", "parameters"),
    [("medusa", 28_167_122), ("none", 23_512_130), ("se", 24_212_530), ("cbam", 24_208_850)],
)
def test_parameter_count(attention, parameters):
    assert count("medusa_medical_resnet50", attention=attention) == parameters


def test_parameter_count_of_the_parts():
    with torch.device("meta"):
        model = zoo.create_model("medusa_medical_resnet50")
    parts = (model.backbone, model.classifier, model.body, model.heads)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [23_508_032, 4_098, 4_368_016, 286_976]


@pytest.mark.parametrize("attention", ["medusa", "none", "se", "cbam"])
def test_shapes_and_learning(attention):
    torch.manual_seed(0)
    model = Medusa(num_classes=3, attention=attention, **SMALL)
    image = torch.rand(2, 3, 72, 72)
    check_learning(model, lambda: model(image), (2, 3))


@pytest.mark.parametrize("mode", ["residual", "gate"])
def test_one_look_reaches_every_stage(mode):
    torch.manual_seed(0)
    model = Medusa(mode=mode, **SMALL).eval()
    looks = []
    model.body.register_forward_hook(lambda *args: looks.append(args))
    _, maps = model.attend(torch.rand(2, 3, 72, 72))
    assert len(looks) == 1
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 18, 18), (8, 9, 9), (16, 5, 5), (16, 3, 3)]
    first = model.body.enc[0][0].weight
    for attention in maps:
        assert attention.min() > 0 and attention.max() < 1
        (gradient,) = torch.autograd.grad(attention.sum(), first, retain_graph=True)
        assert gradient.any()


def test_attention_that_says_nothing_changes_nothing():
    """With attention 0 everywhere, the residual form is the plain classifier."""
    torch.manual_seed(0)
    model, plain = Medusa(**SMALL).eval(), Medusa(attention="none", **SMALL).eval()
    plain.backbone.load_state_dict(model.backbone.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    for head in model.heads:
        torch.nn.init.zeros_(head.layers[3].weight)
        torch.nn.init.constant_(head.layers[3].bias, -200.0)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(image), plain(image))


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="attention is 'sa', expected one of medusa, none, se, cbam"):
        Medusa(attention="sa", **SMALL)
    with pytest.raises(ZooError, match="backbone 'efficientnet_b0' has no four stages"):
        Medusa(backbone="efficientnet_b0")
