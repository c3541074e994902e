import pytest
import torch
from torch.nn.functional import conv2d

import zoo
from tests.dense import check_learning
from zoo.errors import ZooError
from zoo.models.dense.mutual_inpainting import (
    MEDFE,
    Equalisation,
    MutualBlock,
    PartialConv2d,
    PatchDiscriminator,
)


def numel(module, learning=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learning)


def test_parameter_count():
    with torch.device("meta"):
        model, discriminator = zoo.create_model("mutual_inpainting"), PatchDiscriminator()
    assert numel(model) == 130_316_070
    assert numel(model.encoder) == 30_026_432
    assert numel(model.decoder) == 18_098_499
    assert numel(model.mutual.side) == 771
    assert numel(model.mutual) - 771 == 82_190_368
    assert numel(model.mutual, learning=True) - 771 == 54_992_928
    assert numel(discriminator) == 2_764_737


#: Some names and shapes of the authors' three files.
ENCODER = {
    "Encoder_1.model.0.weight": (64, 6, 4, 4),
    "Encoder_5.model.2.bias": (512,),
    "Encoder_6.model.1.weight": (512, 512, 4, 4),
    "middle.3.conv_block.5.weight": (512, 512, 3, 3),
}
DECODER = {
    "Decoder_2.model.1.weight": (1024, 512, 4, 4),
    "Decoder_6.model.1.weight": (128, 3, 4, 4),
}
MUTUAL = {
    "pc_block.down_128.model.3.weight": (256, 128, 4, 4),
    "pc_block.down_4.model.6.weight": (512, 512, 4, 4),
    "pc_block.up_64.conv.weight": (128, 512, 1, 1),
    "pc_block.base.model.0.fc.2.weight": (512, 32, 1, 1),
    "pc_block.base.down.0.weight": (512, 1024, 1, 1),
    "pc_block.cov_7.4.conv.mask_conv.weight": (256, 256, 7, 7),
    "pc_block.cov_3.0.bn.weight": (256,),
    "loss.0.down_model.0.weight": (3, 256, 1, 1),
}


def test_the_authors_names_become_ours():
    with torch.device("meta"):
        model = MEDFE()
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    renamed = model.remap_state_dict(ENCODER | DECODER | MUTUAL)
    assert len(renamed) == 14
    assert {name: ours[name] for name in renamed} == renamed
    assert model.remap_state_dict(model.state_dict()).keys() == ours.keys()
    for module, names in (
        (model.encoder, ENCODER),
        (model.decoder, DECODER),
        (model.mutual, MutualBlock.remap_state_dict(MUTUAL)),
    ):
        assert names.keys() <= module.state_dict().keys()


def test_each_of_the_authors_files_loads(tmp_path):
    torch.manual_seed(0)
    source, target = MEDFE(ngf=2), MEDFE(ngf=2)
    theirs = {
        name.replace("side.", "loss.0.down_model.")
        if name.startswith("side.")
        else f"pc_block.{name}": tensor
        for name, tensor in source.mutual.state_dict().items()
    }
    for part, module, state in (
        ("EN", target.encoder, source.encoder.state_dict()),
        ("DE", target.decoder, source.decoder.state_dict()),
        ("MEDFE", target.mutual, theirs),
    ):
        path = tmp_path / f"latest_net_{part}.pth"
        torch.save({"net": state, "optimize": {"state": {}, "param_groups": []}}, path)
        zoo.load_pretrained(module, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_discriminator_takes_the_older_spectral_norm(tmp_path):
    torch.manual_seed(0)
    old = torch.nn.Sequential(
        *(
            torch.nn.utils.spectral_norm(torch.nn.Conv2d(a, b, 4, 2, 1))
            for a, b in ((3, 4), (4, 8), (8, 16), (16, 32), (32, 1))
        )
    ).eval()
    state = {
        f"model.{2 * int(name[0])}{name[1:]}": tensor for name, tensor in old.state_dict().items()
    }
    torch.save({"net": state}, tmp_path / "latest_net_D.pth")
    discriminator = PatchDiscriminator(ndf=4).eval()
    zoo.load_pretrained(discriminator, tmp_path / "latest_net_D.pth")
    x = image = torch.randn(1, 3, 64, 64)
    for conv in old[:-1]:
        x = torch.nn.functional.leaky_relu(conv(x), 0.2)
    torch.testing.assert_close(discriminator(image), old[-1](x))


@pytest.mark.parametrize("options", [{}, {"equalise": False}, {"mutual": False}, {"legacy": True}])
def test_shapes_and_learning(options):
    torch.manual_seed(0)
    model = MEDFE(ngf=4, res_num=2, reduction=16, **options)
    image = torch.rand(2, 3, 64, 80) * 2 - 1
    mask = torch.zeros(2, 1, 64, 80)
    mask[..., 20:40, 10:50] = 1
    picture, *branches = model(image, mask)
    assert picture.abs().max() <= 1
    total = picture
    if model.mutual is None:
        assert branches == [None, None]
    else:
        assert {branch.shape for branch in branches} == {(2, 3, 8, 10)}
        total = picture + torch.nn.functional.interpolate(branches[0] + branches[1], scale_factor=8)
    # instance norm takes away what a bias before it adds
    check_learning(model, lambda: total, (2, 3, 64, 80), but="bias")


def test_what_lies_in_a_hole_does_not_matter():
    torch.manual_seed(0)
    model = MEDFE(ngf=4, reduction=16).eval()
    image, mask = torch.rand(1, 3, 48, 48), torch.zeros(1, 1, 48, 48)
    mask[..., 8:30, 5:40] = 1
    other = torch.where(mask > 0, torch.rand_like(image), image)
    assert torch.equal(model(image, mask)[0], model(other, mask)[0])


def test_partial_convolution():
    torch.manual_seed(0)
    layer = PartialConv2d(4, 3)
    x, full = torch.randn(1, 4, 6, 6), torch.ones(1, 4, 6, 6)
    y, known = layer(x, full)
    plain = conv2d(x, layer.input_conv.weight, padding=1)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1] / 36)
    assert torch.equal(known, full)
    hole = full.clone()
    hole[..., 1:6, 1:6] = 0
    y, known = layer(x, hole)
    assert known[0, 0].sum() == 20, "the hole shrinks by one ring, but not from the border"
    assert torch.equal(y[known == 0], torch.zeros(int((known == 0).sum())))


def test_equalisation_averages_with_weights_that_sum_to_one():
    torch.manual_seed(0)
    block = Equalisation(16, legacy=False)
    constant = torch.randn(1, 16, 1, 1).expand(1, 16, 8, 8)
    torch.testing.assert_close(block.spatial(constant), constant)
    # zeros beyond the border take part in the nine neighbours
    torch.testing.assert_close(block.range(constant)[..., 1:-1, 1:-1], constant[..., 1:-1, 1:-1])
    x = torch.randn(2, 16, 8, 6)
    assert block.spatial(x).std() < x.std() and block.range(x).std() < x.std()
    assert block(x).shape == x.shape


def test_reduced_hole_mask():
    model = MEDFE(ngf=2).mutual
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    known = model.known(mask)
    assert known.shape == (1, 1, 8, 8) and (known == 0).sum() == 16
    assert MEDFE(ngf=2, legacy=True).mutual.known(mask).min() == 1, "as the authors' code has it"


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="reduction 8, expected 16, 32 or 64"):
        MEDFE(reduction=8)
    model = MEDFE(ngf=2, reduction=16)
    with pytest.raises(ZooError, match=r"50x48 pixels: expected multiples of 16"):
        model(torch.zeros(1, 3, 50, 48), torch.zeros(1, 1, 50, 48))
    with pytest.raises(ZooError, match=r"32x48 pixels, expected at least 48"):
        model(torch.zeros(1, 3, 32, 48), torch.zeros(1, 1, 32, 48))
