import pytest
import torch

from tests import backbones
from zoo.errors import ZooError
from zoo.models.vision.efficientvmamba import (
    EfficientVMamba,
    EfficientVMambaBackbone,
    EVSSBlock,
)

TINY = {"depths": (1, 1, 2, 1), "dims": 8, "num_classes": 10, "drop_path_rate": 0.0}


def official_keys(depths, width):
    keys = {}

    def layer(name, *weight, bias=True):
        keys[f"{name}.weight"] = weight
        if bias:
            keys[f"{name}.bias"] = weight[:1]

    def batch_norm(name, channels):
        layer(name, channels)
        keys[f"{name}.running_mean"] = keys[f"{name}.running_var"] = (channels,)
        keys[f"{name}.num_batches_tracked"] = ()

    layer("patch_embed.0", width, 3, 4, 4)
    layer("patch_embed.2", width)
    for i, depth in enumerate(depths):
        dim = width * 2**i
        inner, mid, rank = 2 * dim, 4 * dim, -(-dim // 16)
        if i < 2:
            for j in range(depth):
                block = f"layers.{i}.blocks.{j}"
                layer(f"{block}.norm", dim)
                keys[f"{block}.op.x_proj_weight"] = (4, rank + 32, inner)
                keys[f"{block}.op.dt_projs_weight"] = (4, inner, rank)
                keys[f"{block}.op.dt_projs_bias"] = (4, inner)
                keys[f"{block}.op.A_logs"] = (4 * inner, 16)
                keys[f"{block}.op.Ds"] = (4 * inner,)
                layer(f"{block}.op.out_norm", inner)
                layer(f"{block}.op.in_proj", 2 * inner, dim, bias=False)
                layer(f"{block}.op.conv2d", inner, 1, 3, 3)
                layer(f"{block}.op.out_proj", dim, inner, bias=False)
                layer(f"{block}.conv_branch.0", dim, 1, 3, 3)
                batch_norm(f"{block}.conv_branch.1", dim)
                layer(f"{block}.conv_branch.3", dim, dim, 1, 1)
                layer(f"{block}.se.norm", dim)
                layer(f"{block}.se.global_reduce", dim // 8, dim)
                layer(f"{block}.se.channel_select", dim, dim // 8)
        else:
            for j in range(1, depth + 1):
                block = f"layers.{i}.{j}"
                layer(f"{block}.conv_pw.0", mid, dim, 1, 1, bias=False)
                batch_norm(f"{block}.conv_pw.1", mid)
                layer(f"{block}.conv_dw.0", mid, 1, 3, 3, bias=False)
                batch_norm(f"{block}.conv_dw.1", mid)
                layer(f"{block}.se.conv_reduce", mid // 8, mid, 1, 1)
                layer(f"{block}.se.conv_expand", mid, mid // 8, 1, 1)
                layer(f"{block}.conv_pw2.0", dim, mid, 1, 1, bias=False)
                batch_norm(f"{block}.conv_pw2.1", dim)
        merge = {0: "layers.0.downsample", 1: "layers.1.downsample", 2: f"layers.2.{depth + 2}"}
        if i in merge:
            layer(f"{merge[i]}.norm", 4 * dim)
            layer(f"{merge[i]}.reduction", 2 * dim, 4 * dim, bias=False)
    layer("classifier.norm", 8 * width)
    layer("classifier.head", 1000, 8 * width)
    return keys


def test_official_keys():
    keys = official_keys((2, 2, 4, 2), 48)
    parameters = [k for k in keys if "running" not in k and "num_batches" not in k]
    assert len(parameters) == 195
    backbones.check_official_keys("efficientvmamba_tiny", keys)
    wrapped = {f"module.module.{key}": shape for key, shape in keys.items()}
    backbones.check_official_keys("efficientvmamba_tiny", wrapped)
    backbones.check_official_keys("efficientvmamba_base", official_keys((2, 2, 9, 2), 96))


def test_smallest_image():
    assert EfficientVMamba(**TINY)(torch.randn(2, 3, 4, 4)).shape == (2, 10)


def test_wrong_arguments():
    with pytest.raises(ZooError, match="downsample_version is v1 or v2, not v3"):
        EfficientVMamba(**TINY, downsample_version="v3")
    with pytest.raises(ZooError, match="at least 4 pixels"):
        EfficientVMamba(**TINY)(torch.zeros(1, 3, 2, 9))


@pytest.mark.parametrize(
    ("blocks", "convolutions", "reached"),
    [(1, False, 22), (2, False, 22), (1, True, 88), (2, True, 139)],
)
def test_reach_of_the_block(blocks, convolutions, reached):
    """How much of a 12x12 map the output at (6, 6) depends on, with the attention gates held at 1.

    Without convolutions it is the causal part of one of the four quarters; more blocks add nothing.
    """
    torch.manual_seed(0)
    modules = [
        EVSSBlock(8, {"d_conv": 3 if convolutions else 1, "scan": "atrous"}) for _ in range(blocks)
    ]
    for block in modules:
        block.se = torch.nn.Identity()
        if not convolutions:
            block.conv_branch = torch.nn.Identity()
    net = torch.nn.Sequential(*modules).double().eval()
    x = torch.randn(1, 12, 12, 8, dtype=torch.float64, requires_grad=True)
    net(x)[0, 6, 6].sum().backward()
    assert int((x.grad.abs().amax(-1) > 0).sum()) == reached


def test_dense_form():
    classifier = EfficientVMamba(**TINY)
    backbone = EfficientVMambaBackbone(**TINY).eval()
    backbone.load_state_dict(backbone.remap_state_dict(classifier.state_dict()))
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
