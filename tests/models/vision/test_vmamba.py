import re

import pytest
import torch

import zoo
from tests import backbones
from zoo.errors import ZooError
from zoo.models.vision.vmamba import VMamba, VMambaBackbone, parse_forward_type

TINY = {"depths": (1, 1, 2, 1), "dims": 8, "num_classes": 10, "drop_path_rate": 0.0}


def official_keys(depths, width, state, ratio, mlp, old_form=False):
    """Names and shapes in the authors' files; ``old_form`` for the first published form (v0)."""
    keys = {}

    def layer(name, *weight, bias=True):
        keys[f"{name}.weight"] = weight
        if bias:
            keys[f"{name}.bias"] = weight[:1]

    if old_form:
        layer("patch_embed.0", width, 3, 4, 4)
        layer("patch_embed.2", width)
    else:
        layer("patch_embed.0", width // 2, 3, 3, 3)
        layer("patch_embed.2", width // 2)
        layer("patch_embed.5", width, width // 2, 3, 3)
        layer("patch_embed.7", width)
    for i, depth in enumerate(depths):
        dim = width * 2**i
        inner, rank = ratio * dim, -(-dim // 16)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            layer(f"{block}.norm", dim)
            keys[f"{block}.op.x_proj_weight"] = (4, rank + 2 * state, inner)
            keys[f"{block}.op.A_logs"] = (4 * inner, state)
            keys[f"{block}.op.Ds"] = (4 * inner,)
            keys[f"{block}.op.dt_projs_weight"] = (4, inner, rank)
            keys[f"{block}.op.dt_projs_bias"] = (4, inner)
            layer(f"{block}.op.out_norm", inner)
            layer(f"{block}.op.in_proj", inner * (2 if old_form else 1), dim, bias=False)
            layer(f"{block}.op.conv2d", inner, 1, 3, 3, bias=old_form)
            layer(f"{block}.op.out_proj", dim, inner, bias=False)
            if mlp:
                layer(f"{block}.norm2", dim)
                layer(f"{block}.mlp.fc1", 4 * dim, dim)
                layer(f"{block}.mlp.fc2", dim, 4 * dim)
        if i < 3 and old_form:
            layer(f"layers.{i}.downsample.norm", 4 * dim)
            layer(f"layers.{i}.downsample.reduction", 2 * dim, 4 * dim, bias=False)
        elif i < 3:
            layer(f"layers.{i}.downsample.1", 2 * dim, dim, 3, 3)
            layer(f"layers.{i}.downsample.3", 2 * dim)
    layer("classifier.norm", 8 * width)
    layer("classifier.head", 1000, 8 * width)
    return keys


def test_official_keys():
    keys = official_keys((2, 2, 8, 2), 96, 1, 1, mlp=True)
    assert len(keys) == 276
    backbones.check_official_keys("vmamba_tiny", keys)
    backbones.check_official_keys(
        "vmamba_base_s2l15", official_keys((2, 2, 15, 2), 128, 1, 2, True)
    )


def test_official_keys_of_the_first_form():
    keys = official_keys((2, 2, 9, 2), 96, 16, 2, mlp=False, old_form=True)
    assert len(keys) == 212
    backbones.check_official_keys("vmamba_tiny_v0", keys)
    old = {}
    for key, shape in keys.items():
        key = re.sub(r"^patch_embed\.0", "patch_embed.proj", key)
        key = re.sub(r"^patch_embed\.2", "patch_embed.norm", key)
        key = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", key).replace(".op.", ".self_attention.")
        old[key.removeprefix("classifier.")] = shape
    backbones.check_official_keys("vmamba_tiny_v0", old)


def test_linear_layers_that_were_saved_as_convolutions():
    model = VMamba(**TINY)
    saved = {
        key: value[:, :, None, None] if key.endswith("_proj.weight") or ".fc" in key else value
        for key, value in model.state_dict().items()
        if value.dim() > 1 or ".fc" not in key
    }
    remapped = model.remap_state_dict(saved)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in remapped.items())


def test_mamba2_form_has_its_convolution_in_a_wrapper():
    model = zoo.create_model("vmamba_tiny_m2", depths=(1, 1, 1, 1), dims=32, ssm_d_state=8)
    official = {
        key.replace("op.conv2d.", "op.conv2d.1."): value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(model.remap_state_dict(official))


def test_smallest_image():
    model = VMamba(**TINY, downsample_version="v3", patchembed_version="v2")
    assert model(torch.randn(2, 3, 4, 9)).shape == (2, 10)


def test_position_embedding_is_resized():
    model = VMamba(**TINY, posembed=True, img_size=32, downsample_version="v3")
    assert model(torch.randn(1, 3, 48, 32)).shape == (1, 10)
    bigger = VMamba(**TINY, posembed=True, img_size=64, downsample_version="v3")
    bigger.load_state_dict(bigger.remap_state_dict(model.state_dict()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forward_type": "v9_noz"}, "forward_type 'v9_noz' is none of"),
        ({"forward_type": "v05_oact_noz"}, "suffixes in the order"),
        ({"norm_layer": "rms"}, "norm_layer is one of ln, ln2d, bn, not rms"),
        ({"ssm_init": "v7"}, "init is one of v0, v1, v2, not v7"),
        ({"forward_type": "m0", "ssm_init": "v2", "ssm_dt_rank": 3}, "not a multiple of dt_rank"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ZooError, match=message):
        VMamba(**{**TINY, **arguments})


FORMS = {
    "v0": ("cross2d", "act", "ln", True),
    "v01_noz": ("cross2d", None, "ln", True),
    "v2_onsigmoid_no32": ("cross2d", "act", "sigmoid", False),
    "v05_nozact": ("cross2d", "linear", "ln", False),
    "v3noz": ("cross2d", None, "ln", False),
    "v1": ("cross2d", "act", "ln", True),
    "v32dsoftmaxnozact": ("bidi", "linear", "softmax", False),
    "v051d_onnone_oact": ("unidi", "act", "none", False),
}


@pytest.mark.parametrize(("forward_type", "form"), FORMS.items())
def test_forward_types(forward_type, form):
    _, ssm = parse_forward_type(forward_type)
    assert tuple(ssm[name] for name in ("scan", "gate", "out_norm", "force_fp32")) == form
    assert ssm["out_act"] is forward_type.endswith("_oact")


def test_first_form_has_no_choice():
    """Whatever the arguments say of activation, convolution and initial values."""
    arguments = {"ssm_act_layer": "gelu", "ssm_conv": 1, "ssm_conv_bias": False, "ssm_init": "v2"}
    op = VMamba(**TINY, **arguments, forward_type="v0").layers[0].blocks[0].op
    assert isinstance(op.act, torch.nn.SiLU) and op.conv2d.weight.shape == (16, 1, 3, 3)
    assert op.conv2d.bias is not None and op.A_logs.std() > 0  # "v2" starts with A = -1


def test_too_small_image():
    with pytest.raises(ZooError, match=r"at least 4 pixels high and wide.*not 3x20"):
        VMamba(**TINY, downsample_version="v3")(torch.zeros(1, 3, 3, 20))


def test_some_of_the_features():
    some = zoo.create_model("vmamba_tiny", features_only=True, out_indices=(1, 2), **TINY)
    assert [m.shape[1] for m in some(torch.randn(1, 3, 32, 32))] == [16, 32]
    assert len(some.model.layers) == 3


def test_dense_form_loads_a_classification_checkpoint():
    classifier = VMamba(**TINY, norm_layer="ln2d").eval()
    backbone = VMambaBackbone(out_indices=(0, 3), **TINY).eval()
    backbone.load_state_dict(backbone.remap_state_dict(classifier.state_dict()))
    images = torch.randn(1, 3, 64, 64)
    maps = classifier.forward_intermediates(images, [0, 3], intermediates_only=True)
    for mine, theirs in zip(backbone(images), maps, strict=True):
        normed = torch.nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2])
        torch.testing.assert_close(mine, normed.permute(0, 3, 1, 2))
