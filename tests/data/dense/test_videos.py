import shutil

import h5py
import numpy as np
import pytest
import torch

from zoo.data.dense.videos import PredNetKITTI, VirtualKITTI
from zoo.data.formats.maps import SmallSample
from zoo.data.synthetic.lit_scenes import FRONTAL, OBLIQUE, draw_scene, render
from zoo.errors import ZooError

SMALL = SmallSample(train=2, val=1, test=1, size=16)


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    return tmp_path_factory.mktemp("videos") / "vkitti"


def virtual_kitti(root, **changes) -> VirtualKITTI:
    settings = {"sample": SMALL, "unlabelled": ["sunset"], "length": 8, "hop": 8, "batch_size": 4}
    return VirtualKITTI(str(root), **settings | changes)


def test_light_changes_the_picture_and_not_the_depth():
    scene = draw_scene(np.random.default_rng(0), 4)
    bright, dim = (
        render(scene, light, np.random.default_rng(1), 16) for light in (FRONTAL, OBLIQUE)
    )
    assert bright[0].shape == (4, 16, 16, 3) and bright[0].min() >= 0 and bright[0].max() <= 1
    assert np.array_equal(bright[1], dim[1]) and (bright[1] > 0).all()
    assert bright[0].mean() > 1.3 * dim[0].mean()


def test_depth_is_where_rays_meet_spheres():
    scene = draw_scene(np.random.default_rng(0), 1)
    scene.centres[:] = [0, 0, 4.0]
    scene.radii[:] = 1.0
    depth = render(scene, FRONTAL, np.random.default_rng(0), 33)[1]
    assert depth[0, 16, 16] == pytest.approx(3.0, abs=1e-6)


def test_only_labelled_recordings_have_depth_in_training(drives):
    data = virtual_kitti(drives)
    data.setup("fit")
    samples = [data.train_transform(data.source("train")[i]) for i in range(16)]
    assert len(data.source("train")) == 16  # 2 scenes, 2 lightings, 4 clips
    assert samples[0]["frames"].shape == (8, 3, 16, 16) and samples[0]["depth"].shape == (8, 16, 16)
    assert [bool(s["depth"].any()) for s in samples[:8]] == [True] * 4 + [False] * 4
    batch = next(iter(data.val_dataloader()))
    assert batch["frames"].shape == (4, 2, 8, 3, 16, 16)
    assert torch.equal(batch["depth"][:, 0], batch["depth"][:, 1])  # to the centimetre
    assert batch["depth"].min() > 1 and batch["depth"].max() < 40


def test_frames_go_by_their_numbers(drives, tmp_path):
    """No clip goes over a gap; names may be of any length; truth belongs to its frame."""
    whole = virtual_kitti(drives)
    scene = tmp_path / "it" / "Scene1000"
    shutil.copytree(drives / "Scene1000", scene)
    for path in list(scene.rglob("*_0*.*")):
        number = int(path.stem[-5:])
        if number == 10 and "sunset" in path.parts:
            path.unlink()
        else:
            path.rename(path.with_name(f"{path.stem[:-6]}_{number}{path.suffix}"))
    data = virtual_kitti(tmp_path / "it", sample=None)
    clips = [(c.video.start + c.start, c.video.path) for item in data.files("val") for c in item]
    assert [start for start, _ in clips[::2]] == [0, 11, 19]  # 8 of 10 frames, 16 of 21
    got, expected = data.source("val")[1], whole.source("val")
    frames = torch.cat([expected[i]["frames"] for i in range(4)], dim=1)
    assert torch.equal(got["frames"], frames[:, 11:19])
    depth = torch.cat([expected[i]["depth"] for i in range(4)], dim=1)
    assert torch.equal(got["depth"], depth[:, 11:19])
    (scene / "clone/frames/depth/Camera_0/depth_12.png").unlink()
    with pytest.raises(ZooError, match="lacks frame 12, which rgb has"):
        virtual_kitti(tmp_path / "it", sample=None).source("val")[1]


def test_frames_are_resized_and_depth_is_not_mixed(drives):
    data = virtual_kitti(drives, size=(8, 12))
    stored = data.source("val")[0]
    resized = data.eval_transform(stored)
    assert resized["frames"].shape == (2, 8, 3, 8, 12)
    assert set(resized["depth"].unique().tolist()) <= set(stored["depth"].unique().tolist())


def test_missing_scenes_and_variations_are_said(drives):
    with pytest.raises(ZooError, match="no scenes named Scene9"):
        virtual_kitti(drives, test=["Scene9*"]).source("test")
    with pytest.raises(ZooError, match=r"fog.*is missing"):
        virtual_kitti(drives, unlabelled=["fog"]).source("train")


def test_prednets_kitti(tmp_path):
    data = PredNetKITTI(str(tmp_path / "kitti"), sample=SMALL, length=5, hop=1, batch_size=2)
    data.setup("fit")
    assert len(data.source("train")) == 2 * (12 - 5 + 1)
    sample = data.source("train")[0]
    assert sample["frames"].shape == (1, 5, 3, 16, 16) and not sample["depth"].any()
    assert len(data.source("val")) == 2  # no frame twice


def test_sources_as_newer_hickle_stores_them(tmp_path):
    names = ["city-a"] * 3 + ["road-b"] * 11
    pixels = np.arange(14, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    with h5py.File(tmp_path / "X_train.hkl", "w") as file:
        file["data"] = pixels
    with h5py.File(tmp_path / "sources_train.hkl", "w") as file:
        group = file.create_group("data")
        for i, name in enumerate(names):  # equal strings are references to the first
            first = names.index(name)
            value = np.array([list(name)], "S1") if first == i else group[f"data{first}"].ref
            group.create_dataset(
                f"data{i}", data=value, dtype=None if first == i else h5py.ref_dtype
            )
    data = PredNetKITTI(str(tmp_path), length=4)
    clips = data.files("train")
    assert [clip[0].video.start for clip in clips] == [3] * 8  # three frames are too few
    assert data.read(clips[1])["frames"][0, 0, 0, 0, 0] == 4


def test_other_files_are_refused(tmp_path):
    for name in ("X_train.hkl", "sources_train.hkl"):
        with h5py.File(tmp_path / name, "w") as file:
            file["something"] = [1]
    with pytest.raises(ZooError, match="neither data nor data_0"):
        PredNetKITTI(str(tmp_path)).source("train")


@pytest.mark.parametrize("broken", ["X", "sources"])
def test_broken_files_are_said(tmp_path, broken):
    PredNetKITTI(str(tmp_path / "kitti"), sample=SMALL, length=5).source("train")
    (tmp_path / "kitti" / f"{broken}_train.hkl").write_bytes(b"nothing")
    with pytest.raises(
        ZooError, match=f"{broken}_train.hkl is a damaged .* expected a file that hickle"
    ):
        PredNetKITTI(str(tmp_path / "kitti"), length=5).source("train")
