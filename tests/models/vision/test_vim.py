import pytest
import torch

import zoo
from tests import backbones
from zoo.errors import ZooError
from zoo.models.vision.vim import Vim

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "stride": 8,
    "depth": 4,
    "embed_dim": 32,
    "num_classes": 10,
    "drop_path_rate": 0.0,
}


def test_parameter_count_without_class_token():
    with torch.device("meta"):
        model = zoo.create_model("vim_tiny", if_cls_token=False)
    assert sum(p.numel() for p in model.parameters()) == 7_147_624


def official_keys(dim, tokens):
    inner, rank = 2 * dim, dim // 16
    keys = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm_f.weight": (dim,),
        "head.weight": (1000, dim),
        "head.bias": (1000,),
    }
    for i in range(24):
        mixer = f"layers.{i}.mixer"
        keys |= {
            f"layers.{i}.norm.weight": (dim,),
            f"{mixer}.in_proj.weight": (2 * inner, dim),
            f"{mixer}.out_proj.weight": (dim, inner),
            f"{mixer}.A_log": (inner, 16),
            f"{mixer}.A_b_log": (inner, 16),
        }
        for branch in ("", "_b"):
            keys |= {
                f"{mixer}.D{branch}": (inner,),
                f"{mixer}.conv1d{branch}.weight": (inner, 1, 4),
                f"{mixer}.conv1d{branch}.bias": (inner,),
                f"{mixer}.x_proj{branch}.weight": (rank + 32, inner),
                f"{mixer}.dt_proj{branch}.weight": (inner, rank),
                f"{mixer}.dt_proj{branch}.bias": (inner,),
            }
    return keys


def test_official_keys():
    assert len(official_keys(192, 197)) == 415
    backbones.check_official_keys("vim_tiny", official_keys(192, 197))
    backbones.check_official_keys("vim_small_stride8", official_keys(384, 730))


def test_position_embedding_is_resized_on_loading():
    small, large = Vim(**TINY), Vim(**{**TINY, "img_size": 48})
    large.load_state_dict(large.remap_state_dict(small.state_dict()))
    # The class token stands at 8 of 16 and at 18 of 36 patches, and keeps its own position.
    torch.testing.assert_close(large.pos_embed[:, 18], small.pos_embed[:, 8])


def test_too_small_image():
    with pytest.raises(ZooError, match=r"at least one patch \(8 pixels\).*not 7x32"):
        Vim(**TINY)(torch.zeros(1, 3, 7, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_pool_type": "median"}, "final_pool_type is one of none, mean, max, all"),
        ({"bimamba_type": "v3"}, "bimamba_type is none, v1 or v2, not v3"),
        ({"if_bidirectional": True, "depth": 3}, "depth is even, not 3"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ZooError, match=message):
        Vim(**{**TINY, **arguments})


@pytest.mark.parametrize("arguments", [{}, {"if_bidirectional": True}])
def test_intermediates_add_up(arguments):
    """The last intermediate map, normalised, holds what the classifier sees."""
    model = Vim(**TINY, if_cls_token=False, **arguments).eval()
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        tokens = model.forward_features(images)
        (features,) = model.forward_intermediates(images, 1, norm=True, intermediates_only=True)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens)


def test_rotary_angles_are_those_of_rows_and_columns():
    rope = Vim(**TINY, if_rope=True, pt_hw_seq_len=8).rope
    x = torch.randn(1, 1 + 16, 32)
    turned = rope(x, (4, 4), 1)
    assert torch.equal(turned[:, :2], x[:, :2])  # the class token, and the corner
    pairs = torch.view_as_complex(x[0, 1:].reshape(4, 4, 16, 2))
    speeds = 10000 ** (-torch.arange(8) / 8)
    by = torch.polar(torch.ones(4, 8), torch.arange(4)[:, None] * 2 * speeds)
    expected = pairs * torch.cat([by[:, None].expand(4, 4, 8), by.expand(4, 4, 8)], dim=-1)
    torch.testing.assert_close(turned[0, 1:], torch.view_as_real(expected).reshape(16, 32))


def test_rotary_checkpoint_of_another_size(tmp_path):
    torch.save(Vim(**TINY, if_rope=True).state_dict(), tmp_path / "vim.pth")
    larger = Vim(**TINY | {"img_size": 48}, if_rope=True)
    before = larger.rope.freqs_cos.clone()
    zoo.load_pretrained(larger, tmp_path / "vim.pth")
    assert torch.equal(larger.rope.freqs_cos, before)


def test_rotary_mistakes_are_one_line():
    with pytest.raises(ZooError, match="at most one class token"):
        Vim(**TINY, if_rope=True, use_double_cls_token=True)
    with pytest.raises(ZooError, match="no pairs of layers and no rotary embedding"):
        zoo.create_model("token_pruning_vim_tiny", **TINY, prune_after=[2], if_rope=True)
