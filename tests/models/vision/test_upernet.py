import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.models.vision.efficientvmamba import EfficientVMamba
from zoo.models.vision.upernet import UPerNet

TINY = {"depths": (1, 1, 1, 1), "dims": 8, "drop_path_rate": 0.0}
SMALL = {"backbone_args": TINY, "num_classes": 5, "channels": 16, "aux_channels": 8}


def official_heads(dims, channels, aux_channels, classes):
    """Names and shapes of MMSegmentation's UPerHead and FCNHead."""
    keys = {}

    def conv(name, out, inner, side):
        keys[f"{name}.conv.weight"] = (out, inner, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.bn.{part}"] = (out,)
        keys[f"{name}.bn.num_batches_tracked"] = ()

    def classifier(name, inner):
        keys[f"{name}.conv_seg.weight"] = (classes, inner, 1, 1)
        keys[f"{name}.conv_seg.bias"] = (classes,)

    classifier("decode_head", channels)
    for i in range(4):
        conv(f"decode_head.psp_modules.{i}.1", channels, dims[-1], 1)
    conv("decode_head.bottleneck", channels, dims[-1] + 4 * channels, 3)
    for i, dim in enumerate(dims[:-1]):
        conv(f"decode_head.lateral_convs.{i}", channels, dim, 1)
        conv(f"decode_head.fpn_convs.{i}", channels, channels, 3)
    conv("decode_head.fpn_bottleneck", channels, 4 * channels, 3)
    conv("auxiliary_head.convs.0", aux_channels, dims[2], 3)
    classifier("auxiliary_head", aux_channels)
    return keys


@pytest.mark.parametrize(
    ("name", "backbone", "dim"),
    [
        ("upernet_vmamba_base", "vmamba_base_s2l15", 128),
        ("upernet_efficientvmamba_tiny", "efficientvmamba_tiny", 48),
    ],
)
def test_official_keys(name, backbone, dim):
    """The backbone as its classifier has it, its output norms, the heads as MMSegmentation's."""
    dims = [dim * 2**i for i in range(4)]
    with torch.device("meta"):
        model, inner = zoo.create_model(name), zoo.create_model(backbone)
        official = {
            f"backbone.{key}": value
            for key, value in inner.state_dict().items()
            if not key.startswith("classifier.")
        }
        if backbone.startswith("efficient"):  # whose convolutional stages are numbered through
            official = {authors_key(key, inner): value for key, value in official.items()}
        for i, width in enumerate(dims):
            for part in ("weight", "bias"):
                official[f"backbone.outnorm{i}.{part}"] = torch.empty(width)
        heads = official_heads(dims, 512, 256, 150)
        official |= {key: torch.empty(shape) for key, shape in heads.items()}
        remapped = model.remap_state_dict(official)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in remapped.items()} == expected
    assert len(remapped) == len(official)


def test_plainmambas_norms_are_those_of_its_maps():
    """They have the numbers of their layers, and the last is the network's final one."""
    inner = {"embed_dims": 8, "num_layers": 8, "img_size": 32}
    model = UPerNet("plainmamba_l1", {**inner, "out_indices": (1, 3, 7)}, 5, 8, aux_channels=4)
    official = {f"ln1.{part}": torch.full((8,), 7.0) for part in ("weight", "bias")}
    for layer in (3, 1):
        official |= {
            f"norm_layer{layer}.{part}": torch.full((8,), float(layer))
            for part in ("weight", "bias")
        }
    classifier = zoo.create_model("plainmamba_l1", **inner)
    official |= {k: v for k, v in classifier.state_dict().items() if k not in official}
    del official["head.weight"], official["head.bias"]
    remapped = model.backbone.remap_state_dict(official)
    assert remapped.keys() == model.backbone.state_dict().keys()
    assert [remapped[f"outnorm{i}.weight"][0].item() for i in range(3)] == [1, 3, 7]
    assert (
        zoo.create_model(
            "upernet_plainmamba_l1",
            **SMALL | {"backbone_args": inner | {"out_indices": (1, 3, 7)}, "aux_index": 0},
        ).backbone.outnorm1.eps
        == 1e-6
    )


def authors_key(key, model: EfficientVMamba):
    parts = key.split(".")
    stage = int(parts[2]) if parts[1] == "layers" else 0
    if stage < 2:
        return key
    if parts[3] == "blocks":
        parts[3:5] = [str(int(parts[4]) + 1)]
    else:
        parts[3] = str(len(model.layers[stage].blocks) + 2)
    return ".".join(parts).replace("se.fc1", "se.conv_reduce").replace("se.fc2", "se.conv_expand")


@pytest.mark.parametrize(
    ("backbone", "arguments", "stride"),
    [
        ("efficientvmamba_tiny", {"depths": (1, 1, 1, 1), "dims": 8}, 4),
        ("vim_tiny", {"depth": 3, "out_indices": (0, 1, 2)}, 16),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (1, 1, 1, 1)}, 4),
        ("resnet10t", {}, 2),
    ],
)
def test_any_backbone(backbone, arguments, stride):
    small = SMALL | {"backbone_args": arguments, "aux_index": -1}
    model = UPerNet(backbone, **small).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64 // stride, 64 // stride)


def test_backbone_takes_the_weights_of_its_classifier(tmp_path):
    torch.manual_seed(0)
    classifier = zoo.create_model("vmamba_tiny", **TINY, num_classes=10)
    torch.save({"model": classifier.state_dict()}, tmp_path / "vmamba.pth")
    model = zoo.create_model("upernet_vmamba_tiny", **SMALL).eval()
    zoo.load_pretrained(model.encoder, tmp_path / "vmamba.pth")
    image = torch.randn(1, 3, 64, 64)
    for mine, theirs in zip(model.backbone.net(image), classifier.stream(image, 3), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_other_classes_leave_the_classifiers_out(tmp_path):
    torch.save(zoo.create_model("upernet_vmamba_tiny", **SMALL).state_dict(), tmp_path / "w.pth")
    model = zoo.create_model("upernet_vmamba_tiny", **SMALL | {"num_classes": 7})
    report = zoo.load_pretrained(model, tmp_path / "w.pth")
    assert {name.rpartition(".")[0] for name in report.head} == set(model.head_names)


@pytest.mark.parametrize(
    ("name", "layers"), [("l1", (5, 11, 17, 23)), ("l2", (5, 11, 17, 23)), ("l3", (8, 17, 26, 35))]
)
def test_plainmambas_maps_are_those_behind_each_quarter(name, layers):
    with torch.device("meta"):
        model = zoo.create_model(f"upernet_plainmamba_{name}")
    assert tuple(model.backbone.net.feature_info.out_indices) == layers
    assert model.auxiliary_head.in_index == 3


def test_plain_pyramid_has_no_pools():
    with torch.device("meta"):
        model = UPerNet("resnet10t", num_classes=5, pool_scales=())
    assert not any("psp_modules" in name for name in model.state_dict())


def test_mistakes_are_one_line():
    with pytest.raises(ZooError, match="there is no backbone 'vmmba_tiny'"):
        UPerNet("vmmba_tiny")
    with pytest.raises(ZooError, match="aux_index is 7, but vmamba_tiny gives 4 maps"):
        UPerNet("vmamba_tiny", TINY, aux_index=7)


@pytest.mark.parametrize("name", ["smp_unet", "smp_fpn", "smp_segformer"])
def test_decoders_of_the_library(name):
    torch.manual_seed(0)
    model = zoo.create_model(name, backbone="efficientvmamba_tiny", num_classes=5, **TINY).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96) and model.stride == 32
    with pytest.raises(ZooError, match="cannot be built on 'vim_tiny'"):
        zoo.create_model(name, backbone="vim_tiny", num_classes=5)
    with pytest.raises(ZooError, match="there is no backbone 'vmmba'"):
        zoo.create_model(name, backbone="vmmba")
