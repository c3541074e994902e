import pytest
import torch

from zoo.errors import ZooError
from zoo.models.vision.mambamixer import TSM2, AveragedBlocks, ViM2

VIM2 = {
    "depths": (2, 2),
    "channel_depths": (1, 1),
    "dims": 16,
    "channel_ratio": (2, 1),
    "channel_width": 4,
    "d_state": 4,
    "num_classes": 10,
    "drop_path_rate": 0.0,
}
SERIES = {"variates": 5, "seq_len": 48, "pred_len": 8, "d_model": 16, "d_state": 4, "dropout": 0.0}


def test_averaging_begins_as_a_plain_stack():
    torch.manual_seed(0)
    averaged = ViM2(**VIM2).eval()
    plain = ViM2(**VIM2, averaging=False).eval()
    own = {k: v for k, v in averaged.state_dict().items() if ".weights." not in k}
    plain.load_state_dict(own)
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(averaged(images), plain(images))


def test_averaging_weights_all_earlier_outputs():
    blocks = AveragedBlocks([torch.nn.Identity() for _ in range(4)], [torch.nn.Identity()] * 2)
    assert blocks.order == [(True, 0), (True, 1), (False, 0), (True, 2), (True, 3), (False, 1)]
    # the input counts twice: as an output of token mixers and of channel mixers
    assert [len(w) for w in blocks.weights] == [2, 3, 4, 5, 6, 7]
    assert [w.tolist().index(1.0) for w in blocks.weights] == [0, 1, 2, 4, 3, 4]
    for weights in blocks.weights:
        torch.nn.init.constant_(weights, 0.5)
    # x, then half the sum of all: 1 | 1.5 | 2.25 ...
    expected, outputs = 1.0, [1.0, 1.0]
    for _ in blocks.order:
        expected = sum(outputs) / 2
        outputs.append(expected)
    assert blocks(torch.ones(1)).item() == pytest.approx(expected)


def test_only_the_channel_mixer_looks_at_other_variates():
    torch.manual_seed(0)
    for mixer, reached in (("mamba", True), ("none", False)):
        model = TSM2(**SERIES, channel_mixer=mixer).eval()
        history = torch.randn(1, 48, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(history)[..., 2].square().sum(), history)
        others = [0, 1, 3, 4]
        assert bool(gradient[..., others].ne(0).any()) is reached


def test_forecast_follows_scale_and_level():
    torch.manual_seed(0)
    model = TSM2(**SERIES).eval()
    history = torch.randn(2, 48, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            model(100 * history + 7), 100 * model(history) + 7, rtol=1e-3, atol=1e-2
        )


def test_wrong_arguments():
    with pytest.raises(ZooError, match="channel_mixer is one of mamba, mlp, none, not conv"):
        TSM2(channel_mixer="conv")
    with pytest.raises(ZooError, match="seq_len 8 is shorter than a patch"):
        TSM2(seq_len=8)
    with pytest.raises(ZooError, match=r"channel_depths \[2, 1\] do not divide depths \[3, 2\]"):
        ViM2(depths=(3, 2), channel_depths=(2, 1), dims=16)
    with pytest.raises(ZooError, match="a history of 40 steps of 5 variates"):
        TSM2(**SERIES)(torch.zeros(1, 40, 5))
