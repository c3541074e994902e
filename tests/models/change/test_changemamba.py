import pytest
import torch

import zoo
from tests import backbones
from zoo.errors import ZooError
from zoo.models.change.changemamba import (
    ChangeDecoder,
    MambaBCD,
    side_by_channel,
    side_by_column,
    side_by_map,
)
from zoo.models.vision.vmamba import VMamba, VMambaBackbone, parse_forward_type

#: In the authors' table, which leaves the parameters of the scans out.
PUBLISHED = {
    "mambabcd_small": 49.94,
    "mambascd_small": 54.28,
    "mambabda_small": 52.11,
    "mambascd_base": 89.99,
    "mambabda_base": 87.76,
}
SCAN = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
BLOCKS = {
    "ssm_d_state": 1,
    "ssm_conv_bias": False,
    "forward_type": "v3noz",
    "downsample_version": "v3",
    "patchembed_version": "v2",
}
SMALL = {**BLOCKS, "dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0, "decoder_width": 8}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_published_count_leaves_the_scans_out(name, millions):
    with torch.device("meta"):
        model = zoo.create_model(name)
    rest = sum(p.numel() for n, p in model.named_parameters() if not n.endswith(SCAN))
    assert round(rest / 1e6, 2) == millions


class Keys(dict):
    """Names and shapes of the authors' checkpoints."""

    def layer(self, name, *weight, bias=True):
        self[f"{name}.weight"] = weight
        if bias:
            self[f"{name}.bias"] = weight[:1]

    def batch_norm(self, name, channels):
        self.layer(name, channels)
        self[f"{name}.running_mean"] = self[f"{name}.running_var"] = (channels,)
        self[f"{name}.num_batches_tracked"] = ()

    def block(self, name, dim):
        inner, rank = 2 * dim, -(-dim // 16)
        self.layer(f"{name}.norm", dim)
        self[f"{name}.op.x_proj_weight"] = (4, rank + 2, inner)
        self[f"{name}.op.dt_projs_weight"] = (4, inner, rank)
        self[f"{name}.op.dt_projs_bias"] = (4, inner)
        self[f"{name}.op.A_logs"] = (4 * inner, 1)
        self[f"{name}.op.Ds"] = (4 * inner,)
        self.layer(f"{name}.op.out_norm", inner)
        self.layer(f"{name}.op.in_proj", inner, dim, bias=False)
        self.layer(f"{name}.op.conv2d", inner, 1, 3, 3, bias=False)
        self.layer(f"{name}.op.out_proj", dim, inner, bias=False)
        self.layer(f"{name}.norm2", dim)
        self.layer(f"{name}.mlp.fc1", 4 * dim, dim)
        self.layer(f"{name}.mlp.fc2", dim, 4 * dim)

    def encoder(self, dim, depths):
        self.layer("encoder.patch_embed.0", dim // 2, 3, 3, 3)
        self.layer("encoder.patch_embed.2", dim // 2)
        self.layer("encoder.patch_embed.5", dim, dim // 2, 3, 3)
        self.layer("encoder.patch_embed.7", dim)
        for i, depth in enumerate(depths):
            for j in range(depth):
                self.block(f"encoder.layers.{i}.blocks.{j}", dim)
            if i < 3:
                self.layer(f"encoder.layers.{i}.downsample.1", 2 * dim, dim, 3, 3)
                self.layer(f"encoder.layers.{i}.downsample.3", 2 * dim)
            self.layer(f"encoder.outnorm{i}", dim)
            dim *= 2

    def res_block(self, name):
        for i in (1, 2):
            self.layer(f"{name}.conv{i}", 128, 128, 3, 3, bias=False)
            self.batch_norm(f"{name}.bn{i}", 128)

    def change_decoder(self, name, dim):
        for level in (1, 2, 3, 4):
            for way in (1, 2, 3):
                place = f"{name}.st_block_{level}{way}"
                channels = dim * 2 ** (level - 1) * (2 if way == 1 else 1)
                self.layer(f"{place}.0", 128, channels, 1, 1)
                self.block(f"{place}.2", 128)
            self.layer(f"{name}.fuse_layer_{level}.0", 128, 640, 1, 1)
            self.batch_norm(f"{name}.fuse_layer_{level}.1", 128)
            if level < 4:
                self.res_block(f"{name}.smooth_layer_{level}")

    def semantic_decoder(self, name, dim):
        self.layer(f"{name}.st_block_4_semantic.0", 128, 8 * dim, 1, 1)
        self.block(f"{name}.st_block_4_semantic.2", 128)
        for level in (1, 2, 3):
            self.block(f"{name}.st_block_{level}_semantic.1", 128)
            self.layer(f"{name}.trans_layer_{level}.0", 128, dim * 2 ** (level - 1), 1, 1)
            self.batch_norm(f"{name}.trans_layer_{level}.1", 128)
        for level in (0, 1, 2, 3):
            self.res_block(f"{name}.smooth_layer_{level}_semantic")


def test_official_keys():
    bcd = Keys()
    bcd.encoder(96, (2, 2, 4, 2))
    bcd.change_decoder("decoder", 96)
    bcd.layer("main_clf", 2, 128, 1, 1)
    backbones.check_official_keys("mambabcd_tiny", bcd)

    scd = Keys()
    scd.encoder(128, (2, 2, 15, 2))
    scd.change_decoder("decoder_bcd", 128)
    scd.semantic_decoder("decoder_T1", 128)
    scd.semantic_decoder("decoder_T2", 128)
    scd.layer("main_clf_cd", 2, 128, 1, 1)
    scd.layer("aux_clf", 7, 128, 1, 1)
    backbones.check_official_keys("mambascd_base", scd)

    bda = Keys()
    bda.encoder(96, (2, 2, 15, 2))
    bda.change_decoder("decoder_damage", 96)
    bda.semantic_decoder("decoder_building", 96)
    bda.layer("main_clf", 5, 128, 1, 1)
    bda.layer("aux_clf", 2, 128, 1, 1)
    backbones.check_official_keys("mambabda_small", bda)


def test_linear_layers_may_be_stored_as_convolutions():
    model = MambaBCD(**SMALL)
    stored = {
        key: value[:, :, None, None] if value.dim() == 2 and "proj.weight" in key else value
        for key, value in model.state_dict().items()
    }
    again = model.remap_state_dict(stored)
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_encoder_takes_the_weights_of_a_classifier(tmp_path):
    arguments = {k: v for k, v in SMALL.items() if k != "decoder_width"}
    classifier = VMamba(**arguments, num_classes=10)
    torch.save({"model": classifier.state_dict()}, tmp_path / "vmamba.pth")
    model = MambaBCD(**SMALL)
    zoo.load_pretrained(model.encoder, tmp_path / "vmamba.pth")
    image = torch.randn(1, 3, 32, 32)
    for mine, theirs in zip(
        model.encoder.stream(image, 3), classifier.stream(image, 3), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_ways_to_put_two_dates_side_by_side():
    pre, post = torch.randn(2, 2, 3, 4, 5).unbind()
    both = side_by_column(pre, post)
    assert both.shape == (2, 3, 4, 10)
    assert torch.equal(both[..., ::2], pre) and torch.equal(both[..., 1::2], post)
    first, second = side_by_map(pre, post).chunk(2, -1)
    assert torch.equal(first, pre) and torch.equal(second, post)
    assert torch.equal(side_by_channel(pre, post)[:, 3:], post)


@pytest.mark.parametrize(("arrange", "sees"), [(side_by_map, True), (None, False)])
def test_one_scan_through_both_dates_relates_far_pixels(arrange, sees):
    """A pixel before depends on another pixel after if both dates are in one scan, else not."""
    torch.manual_seed(0)
    encoder = VMambaBackbone(**{**BLOCKS, "ssm_conv": 1}, dims=8, depths=(1, 1, 1, 1))
    block = encoder.make_block(8).double()
    pre, post = torch.randn(2, 1, 8, 4, 4, dtype=torch.float64).requires_grad_()
    maps = arrange(pre, post) if arrange else pre
    block(maps.permute(0, 2, 3, 1))[0, 0, 0].sum().backward(inputs=[pre, post])
    assert bool(post.grad is not None and post.grad[0, :, 3, 2].abs().sum() > 0) is sees


def test_any_size_and_one_shape():
    model = MambaBCD(**SMALL).eval()
    assert model(*torch.randn(2, 1, 3, 37, 50)).shape == (1, 2, 37, 50)
    with pytest.raises(ZooError, match="expected two of one shape"):
        model(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 48))


def test_decoder_of_any_width_and_every_parameter_decays():
    model = MambaBCD(**SMALL)
    assert isinstance(model.decoder, ChangeDecoder)
    assert model.decoder.fuse_layer_1[0].weight.shape == (8, 40, 1, 1)
    (group,) = model.weight_decay_groups(5e-4)
    assert len(group["params"]) == len(list(model.parameters()))


def test_forward_types_as_spelt_in_early_2024():
    for early, late in (("v3noz", "v3_noz"), ("v2softmaxnozactno32", "v2_onsoftmax_nozact_no32")):
        assert parse_forward_type(early) == parse_forward_type(late)
    assert parse_forward_type("v31d")[1]["scan"] == "unidi"
