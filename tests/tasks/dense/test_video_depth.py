import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.dense.test_super_resolution import train
from zoo.data.dense.videos import PredNetKITTI, VirtualKITTI
from zoo.data.formats.maps import SmallSample
from zoo.errors import ZooError
from zoo.tasks import OptimizerSettings, ScheduleSettings
from zoo.tasks.dense.video_depth import VideoDepth


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos") / "drives"
    sample = SmallSample(train=1, val=1, test=1, size=16)
    settings = {"unlabelled": ["sunset"], "length": 8, "hop": 8, "batch_size": 4}
    return VirtualKITTI(str(root), sample=sample, **settings)


def task(model="prelude_net_tiny", **changes) -> VideoDepth:
    torch.manual_seed(0)
    return VideoDepth(
        model=model,
        optimizer=OptimizerSettings(lr=1e-3, lr_batch_size=None, weight_decay=0),
        schedule=ScheduleSettings(sched="constant", warmup_epochs=0),
        **{"layer_weights": [1.0, 0.1, 0.1], **changes},
    )


def test_scores_and_pictures(drives):
    module = task()
    trainer = train(module, drives, 1)
    scores = trainer.test(module, datamodule=drives, verbose=False)[0]
    names = "loss frame_mse copy_mse ssim abs_rel rmse delta1 abs_rel_aligned abs_rel_shifted gap"
    assert {f"test/{name}" for name in [*names.split(), "spread"]} <= set(scores)
    assert scores["test/gap"] == pytest.approx(
        scores["test/abs_rel_shifted"] / scores["test/abs_rel"], rel=1e-5
    )
    assert "examples" in module.figures()


def test_losses_by_hand(drives):
    batch = {"frames": torch.rand(2, 3, 3, 16, 16), "depth": torch.zeros(2, 3, 16, 16)}
    module = task()
    output = module.model(batch["frames"])
    weights = torch.tensor([1.0, 0.1, 0.1])
    expected = (output.errors[:, 1:] * weights).sum(-1).mean()
    torch.testing.assert_close(module.training_loss(batch), expected)  # no depth is known
    ahead = task(extrap_start=2)
    expected = (ahead.model(batch["frames"], 2).frames - batch["frames"])[:, 1:].abs().mean() / 2
    torch.testing.assert_close(ahead.training_loss(batch), expected)


def test_a_frozen_encoder_stays(drives):
    module = task(freeze_encoder=True)
    before = [p.clone() for p in module.model.enc.parameters()]
    head = module.model.head.weight.clone()
    train(module, drives, 1)
    assert all(map(torch.equal, before, module.model.enc.parameters()))
    assert not torch.equal(head, module.model.head.weight)


def test_single_frames_and_videos_without_depth(drives, tmp_path):
    module = task("prelude_net_frame_unet", model_args={"widths": [8, 8, 16]})
    trainer = train(module, drives, 1)
    scores = trainer.test(module, datamodule=drives, verbose=False)[0]
    assert "test/abs_rel" in scores and "test/frame_mse" not in scores
    data = PredNetKITTI(
        str(tmp_path / "kitti"), sample=SmallSample(1, 1, 1, 16), length=4, batch_size=2
    )
    module = task(model_args={"d_sizes": []})
    scores = train(module, data, 1).test(module, datamodule=data, verbose=False)[0]
    assert "test/frame_mse" in scores and "test/abs_rel" not in scores


def test_a_folder_is_a_video(drives, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"frame{i}.png" for i in (1, 2, 10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (18, 21, 3), np.uint8)).save(path)
    folder = tmp_path / "out"
    folder.mkdir()
    module = task()
    rows = module.predict_files(module.find_inputs(paths[::-1]), drives, folder)
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert set(rows[0]) == {"file", "mean_depth", "prediction_error"}
    with Image.open(folder / "0003_frame10_result.png") as picture:
        assert picture.size == (21, 18)
    Image.new("RGB", (8, 8)).save(paths[1])
    _, broken, after = module.predict_files(paths, drives, tmp_path)
    assert re.search(r"frame2\.png: 8x8 pixels.*began with 21x18", broken["error"])
    assert set(after) == set(rows[2]), "the video goes on behind a frame that does not fit"


def test_wrong_settings_are_said():
    with pytest.raises(ZooError, match="layer_weights has 1 values, expected 3"):
        task(layer_weights=[1.0])
    with pytest.raises(ZooError, match="has no videos"):
        task().check_data(object())
