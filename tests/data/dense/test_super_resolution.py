import random

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.base import seeded
from zoo.data.dense.super_resolution import SuperResolution
from zoo.data.formats.degradation import bicubic, real_esrgan
from zoo.data.formats.maps import SmallSample, write_image
from zoo.errors import ZooError

SMALL = SmallSample(train=12, val=2, test=3, size=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "div2k"
    settings = {"size": 32, "eval_size": 40, "scales": [2, 4], "batch_size": 2}
    data = SuperResolution(str(root), sample=SMALL, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def test_batches(data):
    batch = next(iter(data.train_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (2, 3, 32, 32),
        "low_2": (2, 3, 16, 16),
        "low_4": (2, 3, 8, 8),
    }
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert next(iter(data.val_dataloader()))["image"].shape == (2, 3, 40, 40)
    assert len(data.source("test")) == 3


def test_small_copies_are_those_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    small = bicubic(torch.from_numpy(pixels).movedim(-1, 0) / 255, [4])[4]
    expected = np.asarray(Image.fromarray(pixels).resize((8, 6), Image.Resampling.BICUBIC))
    assert np.abs(small.movedim(0, -1).numpy() * 255 - expected).max() <= 1.01


def test_scales_share_one_draw():
    image = torch.rand(3, 32, 32)
    with seeded(1):
        both = real_esrgan(image, [2, 4])
        after = random.random()
    with seeded(1):
        one = real_esrgan(image, [4])
        assert random.random() == after
    assert torch.equal(both[4], one[4])
    assert both[2].shape == (3, 16, 16) and both[4].shape == (3, 8, 8)


def test_real_degradation_stays_a_picture():
    ramp = torch.linspace(0.2, 0.8, 3 * 32 * 48).view(3, 32, 48)
    for seed in range(12):
        with seeded(seed):
            low = real_esrgan(ramp, [4])[4]
        assert low.shape == (3, 8, 12) and low.isfinite().all()
        assert low.min() >= 0 and low.max() <= 1 and abs(low.mean() - 0.5) < 0.1


def test_given_pairs_are_the_test(data, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("gt", 32), ("lq", 8)):
        write_image(tmp_path / name / "a.png", rng.random((size, size, 3)))
    paired = SuperResolution(str(data.root), size=32, pairs=str(tmp_path), batch_size=1)
    sample = paired.eval_transform(paired.source("test")[0])
    assert set(sample) == {"image", "low_4"} and sample["low_4"].shape == (3, 8, 8)
    write_image(tmp_path / "lq" / "a.png", rng.random((7, 8, 3)))
    with pytest.raises(ZooError, match="expected one of the scales"):
        paired.eval_transform(paired.source("test")[0])
    (tmp_path / "lq" / "a.png").rename(tmp_path / "lq" / "b.png")
    with pytest.raises(ZooError, match="gt lacks 1 of the 1 pictures of"):
        paired.files("test")


def test_what_does_not_fit_is_said(data):
    with pytest.raises(ZooError, match="multiples of the largest scale, 4"):
        SuperResolution(str(data.root), size=30)
    large = SuperResolution(str(data.root), size=64, batch_size=1)
    with pytest.raises(ZooError, match="48x48 pixels, expected 64 a side"):
        large.train_transform(large.source("train")[0])
    with pytest.raises(ZooError, match="DIV2K_train_HR"):
        SuperResolution(str(data.root.parent), batch_size=1).source("train")
