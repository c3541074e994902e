import numpy as np
import pytest
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.metrics.tracking import paired_iou
from zoo.models.tracking.trackssm import TrackSSM

SMALL = {"encoder": {"d_model": 32, "n_layer": 2}, "decoder": {"d_model": 32, "n_layer": 3}}


def test_parameter_count():
    assert count("trackssm") == count("trackssm_mot17") == 5_129_496
    with torch.device("meta"):
        parts = [TrackSSM().encoder, TrackSSM().ssm_decoder]
    assert [sum(p.numel() for p in m.parameters()) for m in parts] == [2_630_400, 2_499_096]


def test_published_checkpoint_layout_loads(tmp_path):
    theirs, ours = TrackSSM(**SMALL), TrackSSM(**SMALL)
    shapes = {name: tuple(t.shape) for name, t in TrackSSM().state_dict().items()}
    assert shapes["encoder.mamba_net.embedding.weight"] == (8, 256)
    assert shapes["encoder.mamba_net.layers.5.mixer.x_proj.weight"] == (48, 512)
    assert shapes["encoder.mamba_net.norm_f.weight"] == (256,)
    assert shapes["ssm_decoder.head_series.5.A_log"] == (256, 16)
    assert shapes["ssm_decoder.head_series.0.normal_bboxes.bias"] == (4,)
    assert len(shapes) == 2 + 6 * 10 + 6 * 14
    published = {f"module.{name}": t for name, t in theirs.state_dict().items()}
    optimizer = torch.optim.Adam(theirs.parameters()).state_dict()
    torch.save({"ddpm": published, "epoch": 120, "optimizer": optimizer}, tmp_path / "it.pt")
    zoo.load_pretrained(ours, tmp_path / "it.pt")
    condition = torch.rand(2, 5, 8)
    assert torch.equal(ours(condition), theirs(condition))


def test_shapes_and_learning():
    model = TrackSSM(**SMALL)
    condition = torch.rand(4, 5, 8)
    # the first layer's state is zero, so nothing can fade in it: as in the authors' code
    check_learning(model, lambda: model(condition), (3, 4, 4), but="head_series.0.A_log")
    first, *others = model.ssm_decoder.head_series
    for other in others:
        assert torch.equal(first.in_proj.weight, other.in_proj.weight), "layers start alike"


def test_gradients_stay_in_their_layer():
    model = TrackSSM(**SMALL)
    model(torch.rand(4, 5, 8))[-1].sum().backward()
    first, _, last = model.ssm_decoder.head_series
    assert not first.in_proj.weight.grad.any() and last.in_proj.weight.grad.any()


def test_targets_walk_straight_to_the_next_box():
    model = TrackSSM(**SMALL)
    start, target = torch.zeros(1, 4), torch.ones(1, 4)
    torch.testing.assert_close(model.layer_targets(start, target)[:, 0, 0], torch.arange(1, 4) / 3)
    assert model.layer_targets(start, target).shape == (3, 1, 4)
    final = TrackSSM(**SMALL, targets="final")
    assert torch.equal(final.layer_targets(start, target), torch.ones(3, 1, 4))


def test_loss_counts_overlap_where_wanted():
    torch.manual_seed(0)
    both, condition = TrackSSM(**SMALL), torch.rand(4, 5, 8)
    distance = TrackSSM(**SMALL, giou=False)
    distance.load_state_dict(both.state_dict())
    target = torch.rand(4, 4)
    assert both.loss(condition, target) > distance.loss(condition, target) + 1


def test_a_few_steps_bring_boxes_closer():
    torch.manual_seed(0)
    model = TrackSSM(**SMALL)
    boxes = torch.rand(16, 1, 4) * 0.3 + 0.3 + torch.arange(6)[:, None] * 0.01  # going down right
    condition = torch.cat([boxes[:, :5], torch.full((16, 5, 4), 0.01)], -1)
    before = paired_iou(model(condition)[-1], boxes[:, 5]).mean()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(condition, boxes[:, 5]).backward()
        optimizer.step()
    assert paired_iou(model(condition)[-1], boxes[:, 5]).mean() > before + 0.2


def test_boxes_may_leave_the_picture_without_sigmoid():
    model = zoo.create_model("trackssm_mot17", **SMALL)
    head = model.ssm_decoder.head_series[-1].normal_bboxes
    with torch.no_grad():
        head.bias.fill_(-3.0)
    assert model(torch.rand(1, 5, 8))[-1].max() < 0
    inside = zoo.create_model("trackssm", **SMALL)(torch.rand(1, 5, 8))
    assert inside.min() > 0 and inside.max() < 1


def test_short_histories_repeat_their_newest_row():
    model = TrackSSM(**SMALL).eval()
    rows = np.random.default_rng(0).uniform(0, 100, (3, 8))
    filled = np.concatenate([rows, rows[[-1, -1]]])
    got = model.generate([rows, filled], 640, 360)
    assert got.shape == (2, 4)
    np.testing.assert_allclose(got[0], got[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"targets": "curved"}, "linear or final, not 'curved'"),
        ({"decoder": {"d_model": 128}}, "one d_model, not 256 and 128"),
        ({"decoder": {"d_model": 100}}, "multiple of 8"),
    ],
)
def test_wrong_arguments_are_said(arguments, said):
    with pytest.raises(ZooError, match=said):
        TrackSSM(**arguments)
