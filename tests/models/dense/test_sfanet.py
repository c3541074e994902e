import pytest
import torch
from torch.nn.functional import max_pool2d, max_unpool2d

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.sfanet import VGG, VGG16, VGG19, ContextualModule, MSegNet, MSFANet


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("m_sfanet", 22_904_390, 247),
        ("m_segnet", 9_747_526, 182),
        ("m_sfanet_qnrf", 28_618_113, 66),
        ("m_segnet_qnrf", 22_583_681, 52),
    ],
)
def test_parameters_and_keys(name, parameters, tensors):
    assert count(name) == parameters
    with torch.device("meta"):
        state = zoo.create_model(name).state_dict()
    keys = [key for key in state if "running" not in key and "num_batches" not in key]
    assert len(state) == tensors or len(keys) == tensors


def test_checkpoints_have_the_authors_keys():
    with torch.device("meta"):
        state = zoo.create_model("m_sfanet").state_dict()
    shapes = {
        "vgg.conv1_1.conv.weight": (64, 3, 3, 3),
        "spm.assp.aspp2.atrous_conv.weight": (256, 512, 3, 3),
        "spm.assp.global_avg_pool.1.weight": (256, 512, 1, 1),
        "spm.assp.conv1.weight": (256, 1280, 1, 1),
        "spm.can.scales.3.1.weight": (512, 512, 1, 1),
        "spm.can.bottleneck.weight": (512, 1024, 1, 1),
        "amp.conv1.conv.weight": (256, 768, 1, 1),
        "conv_out.conv.weight": (1, 32, 1, 1),
        "conv_out.bn.running_mean": (1,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


SMALL = {"width": 4, "depths": (1, 1, 1, 1, 1)}


@pytest.mark.parametrize(
    "build",
    [
        lambda: MSFANet(**SMALL),
        lambda: MSFANet(**SMALL, context=False),
        lambda: MSFANet(**SMALL, qnrf=True),
        lambda: MSegNet(width=4, depths=(1, 1, 1, 1)),
        lambda: MSegNet(**SMALL, qnrf=True),
    ],
)
def test_shapes_and_learning(build):
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    density, attention = model(torch.randn(2, 3, 64, 96))
    assert density.shape == (2, 1, 32, 48)
    if model.qnrf:
        assert attention is None and density.min() >= 0
        total = density
    else:
        assert attention.min() > 0 and attention.max() < 1
        total = density + attention
    # biases before batch norm and of dead ReLUs get no gradient
    check_learning(model, lambda: total, (2, 1, 32, 48), but="bias")


@pytest.mark.slow
def test_vgg_takes_torchvisions_weights():
    import torchvision

    for ours, theirs in ((VGG(64, VGG16, True), "vgg16_bn"), (VGG(64, VGG19, False), "vgg19")):
        reference = torchvision.models.get_model(theirs, weights=None).eval()
        state = {k: v for k, v in reference.state_dict().items() if k.startswith("features")}
        ours.load_state_dict(ours.remap_state_dict(state))
        image = torch.randn(1, 3, 32, 32)
        last = reference.features[:-1](image)  # without the last pooling
        torch.testing.assert_close(ours.eval()(image)[-1], last)
    with pytest.raises(ZooError, match="expected"):
        ours.remap_state_dict({"features.0.weight": torch.zeros(64, 3, 3, 3)})


def test_files_without_counted_batches_load(tmp_path):
    model = MSegNet(width=4)
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "trainer_ckpt.tar")
    zoo.load_pretrained(model, tmp_path / "trainer_ckpt.tar")


def test_unpooling_keeps_every_maximum_at_its_place():
    x = torch.randn(1, 3, 8, 8)
    pooled, places = max_pool2d(x, 2, return_indices=True)
    back = max_unpool2d(pooled, places, 2)
    kept = back != 0
    assert torch.equal(back[kept], x[kept]) and kept.sum() == pooled.numel()


def test_context_of_a_constant_map_is_constant():
    module = ContextualModule(4)
    y = module(torch.full((1, 4, 12, 18), 0.5))
    torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y))


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="multiples of 16"):
        MSegNet(width=4)(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ZooError, match="no form for UCF-QNRF"):
        MSFANet(context=False, qnrf=True)
