import torch

from tests import backbones
from zoo.layers.scan_orders import snake
from zoo.models.vision.plainmamba import PlainMamba, PlainMamba2D

TINY = {
    "img_size": 64,
    "embed_dims": 24,
    "num_layers": 3,
    "layers_with_dwconv": (0,),
    "num_classes": 10,
    "drop_path_rate": 0.0,
}


def official_keys(dim, layers, convs, with_dwconv):
    keys = {
        "pos_embed": (1, 196, dim),
        "patch_embed.stem.0.weight": (64, 3, 7, 7),
        "patch_embed.projection.weight": (dim, 64, 8, 8),
        "patch_embed.projection.bias": (dim,),
        "ln1.weight": (dim,),
        "ln1.bias": (dim,),
    }

    def batch_norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.{part}"] = (channels,)
        keys[f"{name}.num_batches_tracked"] = ()

    batch_norm("patch_embed.stem.1", 64)
    for i in range(convs):
        keys[f"patch_embed.convs.{3 * i}.weight"] = (64, 64, 3, 3)
        batch_norm(f"patch_embed.convs.{3 * i + 1}", 64)
    inner, rank = 2 * dim, dim // 16
    for i in range(layers):
        mamba = f"layers.{i}.mamba"
        keys |= {
            f"layers.{i}.norm.weight": (dim,),
            f"layers.{i}.norm.bias": (dim,),
            f"{mamba}.in_proj.weight": (2 * inner, dim),
            f"{mamba}.in_proj.bias": (2 * inner,),
            f"{mamba}.conv2d.weight": (inner, 1, 7, 7),
            f"{mamba}.conv2d.bias": (inner,),
            f"{mamba}.x_proj.weight": (rank + 32, inner),
            f"{mamba}.dt_proj.weight": (inner, rank),
            f"{mamba}.dt_proj.bias": (inner,),
            f"{mamba}.A_log": (inner, 16),
            f"{mamba}.D": (inner,),
            f"{mamba}.direction_Bs": (5, 16),
            f"{mamba}.out_proj.weight": (dim, inner),
            f"{mamba}.out_proj.bias": (dim,),
        }
        if i in with_dwconv:
            keys[f"layers.{i}.dw.0.weight"] = (dim, 1, 3, 3)
            batch_norm(f"layers.{i}.dw.1", dim)
    keys = {f"backbone.{key}": shape for key, shape in keys.items()}
    return keys | {"head.fc.weight": (1000, dim), "head.fc.bias": (1000,)}


def test_official_keys():
    backbones.check_official_keys("plainmamba_l1", official_keys(192, 24, 1, (0,)))
    backbones.check_official_keys("plainmamba_l3", official_keys(448, 36, 2, ()))


def test_smallest_image():
    assert PlainMamba(**TINY)(torch.randn(2, 3, 3, 9)).shape == (2, 10)


def test_position_embedding_is_resized_on_loading():
    small, large = PlainMamba(**TINY), PlainMamba(**{**TINY, "img_size": 96})
    large.load_state_dict(large.remap_state_dict(small.state_dict()))


def test_corrected_form_moves_whole_tokens():
    """On a single row the orders are forward and backward: the mixer does not know which is which.

    Unless, as in the published form, the step sizes, B and C stay behind when x is turned round.
    """

    def difference(strict_official):
        torch.manual_seed(0)
        mixer = PlainMamba2D(24, conv_size=1, strict_official=strict_official)
        torch.nn.init.zeros_(mixer.direction_Bs)
        torch.nn.init.normal_(mixer.x_proj.weight)
        x, order = torch.randn(1, 20, 24), snake(1, 20)
        with torch.no_grad():
            y, turned = mixer(x, (1, 20), order), mixer(x.flip(1), (1, 20), order)
        return (turned.flip(1) - y).abs().max() / y.abs().max()

    assert difference(strict_official=False) < 1e-5
    assert difference(strict_official=True) > 0.05
