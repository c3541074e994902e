import pytest
import torch

from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.wau import WAUNet, WindowAttentionUpsample


@pytest.mark.parametrize(
    ("upsampler", "parameters"),
    [("transposed", 31_037_001), ("bilinear", 28_948_041), ("wau", 33_858_881), ("au", 33_858_881)],
)
def test_parameter_count(upsampler, parameters):
    assert count("wau_unet", upsampler=upsampler) == parameters


def test_parameter_count_of_the_blocks():
    with torch.device("meta"):
        blocks = WAUNet().up
    counts = [sum(p.numel() for p in block.parameters()) for block in blocks]
    assert counts == [4_214_336, 1_058_592, 267_152, 68_040]


def upsample(**kwargs) -> WindowAttentionUpsample:
    torch.manual_seed(0)
    block = WindowAttentionUpsample(32, 16, window=4, head_dim=8, **kwargs)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block.eval()


def maps(height, width):
    return torch.randn(2, 32, height, width), torch.randn(2, 16, 2 * height, 2 * width)


@pytest.mark.parametrize("size", [(4, 4), (3, 4)])
def test_one_window_over_the_map_is_attention_over_the_map(size):
    y, x = maps(*size)
    torch.testing.assert_close(upsample()(y, x), upsample(whole=True)(y, x), atol=1e-5, rtol=1e-5)


def test_untrained_block_is_the_bilinear_upsampler():
    torch.manual_seed(0)
    block = WindowAttentionUpsample(32, 16, window=4)
    y, x = maps(4, 8)
    up = torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear")
    assert torch.equal(block(y, x), block.skip(up))


def test_windows_do_not_see_each_other():
    block = upsample()
    y, x = maps(8, 8)
    changed = x.clone()
    changed[:, :, :8, :8] = changed[:, :, :8, :8].flip(-1)
    before, after = block(y, x), block(y, changed)
    assert torch.equal(before[:, :, 8:], after[:, :, 8:])
    assert torch.equal(before[:, :, :, 8:], after[:, :, :, 8:])
    assert not torch.equal(before, after)


def test_padding_does_not_matter():
    block = upsample()
    y, x = maps(4, 8)
    cut = block(y[..., :5], x[..., :10])
    assert torch.equal(cut[..., :8], block(y, x)[..., :8]) or torch.allclose(
        cut[..., :8], block(y, x)[..., :8], atol=1e-5
    )
    # a window whose keys are all but one padding
    assert cut.isfinite().all()


@pytest.mark.parametrize("shift", [False, True])
def test_any_size_has_finite_gradients(shift):
    block = upsample(shift=shift)
    y, x = (t.requires_grad_() for t in maps(7, 10))
    block(y, x).sum().backward()
    assert y.grad.isfinite().all() and x.grad.isfinite().all()
    assert y.grad.abs().sum((0, 1)).min() > 0


def test_shifted_windows_see_across_borders():
    plain, shifted = upsample(), upsample(shift=True)
    y, x = maps(8, 8)
    near = y.clone()
    near[:, :, 3] += 1  # last key row of the upper window
    row = 8  # first query row of the lower window
    bilinear = [
        b.skip(torch.nn.functional.interpolate(t, scale_factor=2, mode="bilinear"))
        for b, t in ((plain, y), (plain, near))
    ]
    assert torch.equal(bilinear[0][:, :, row + 1], bilinear[1][:, :, row + 1])
    assert torch.equal(plain(y, x)[:, :, row + 1], plain(near, x)[:, :, row + 1])
    assert not torch.equal(shifted(y, x)[:, :, row + 1], shifted(near, x)[:, :, row + 1])


@pytest.mark.parametrize("upsampler", ["wau", "au", "bilinear", "transposed"])
def test_unet_shapes_and_learning(upsampler):
    torch.manual_seed(0)
    small = dict(in_chans=4, num_classes=4, widths=(8, 16, 32), window=4, head_dim=8)
    model = WAUNet(**small, upsampler=upsampler)
    for block in model.up:
        for name, parameter in block.named_parameters():
            if name in ("proj.weight", "mlp.2.weight"):  # zero at the start
                torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(2, 4, 32, 48)
    # softmax over the keys cancels the keys' bias
    check_learning(model, lambda: model(image), (2, 4, 32, 48), but=".k.bias")


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="upsampler is 'cubic'"):
        WAUNet(upsampler="cubic")
    with pytest.raises(ZooError, match="multiples of 4"):
        WAUNet(widths=(8, 16, 32))(torch.zeros(1, 1, 30, 32))
