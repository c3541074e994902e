import random

import numpy as np
import pytest
import torch

from zoo.data.dense.multi_task import NYUD
from zoo.data.dense.pascal_context import GROUP, INDOOR, PASCALContext
from zoo.data.formats.maps import SmallSample, write_image
from zoo.data.synthetic.mode_scenes import BACKGROUND, DEPTHS, GROUND, draw_modes
from zoo.errors import ZooError

SMALL = SmallSample(train=4, val=2, test=2, size=48)


def test_the_mark_says_what_labels_show():
    rng = np.random.default_rng(0)
    scenes = [draw_modes(rng, 48) for _ in range(30)]
    assert {scene.mode for scene in scenes} == {0, 1}
    for scene in scenes:
        assert (scene.image[3, 3].mean() < 0.5) == (scene.mode == 1)
        objects = scene.labels != BACKGROUND
        assert not objects[:24, :24].any()  # none near the mark
        assert set(np.unique(scene.depth[~objects])) == {np.float32(GROUND)}
        if scene.mode == 1:  # labels are colours, and so is depth
            colours = scene.labels[objects]
            assert np.allclose(scene.depth[objects], DEPTHS[colours])


@pytest.fixture(scope="module")
def nyud(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks") / "nyud"
    return NYUD(str(root), size=(48, 64), num_classes=4, sample=SMALL, batch_size=2)


def test_nyud(nyud):
    nyud.setup("fit")
    batch = next(iter(nyud.val_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (2, 3, 48, 64),
        "semseg": (2, 48, 64),
        "depth": (2, 48, 64),
        "normals": (2, 3, 48, 64),
        "edge": (2, 48, 64),
    }
    inside = batch["semseg"] != 255
    assert inside[:, :, 8:56].all() and not inside[:, :, :8].any()  # padded on both sides
    assert set(batch["semseg"].unique().tolist()) == {0, 1, 2, 3, 255}
    assert not batch["depth"][~inside].any() and not batch["normals"].movedim(1, -1)[~inside].any()
    length = batch["normals"].norm(dim=1)[inside]
    torch.testing.assert_close(length, torch.ones_like(length))
    assert set(batch["edge"].unique().tolist()) == {0, 1, 255}
    batch = next(iter(nyud.train_dataloader()))
    assert batch["image"].shape == (2, 3, 48, 64) and batch["edge"].dtype == torch.int64


def test_larger_is_nearer_and_mirrored_normals_point_back(nyud, monkeypatch):
    sample = nyud.source("train")[0]
    monkeypatch.setattr(random, "uniform", lambda low, high: 2.0)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    result = nyud.train_transform(sample)
    known = result["depth"] > 0
    assert set((result["depth"][known] * 2).unique().tolist()) <= set(
        sample["depth"].unique().tolist()
    )
    towards = result["normals"][0]
    assert set(np.round(-towards.unique().numpy(), 3)) <= set(
        np.round(sample["normals"][0].unique().numpy(), 3)
    )


def test_unknown_labels_and_tasks(nyud, tmp_path):
    only = NYUD(str(nyud.root), size=(48, 48), num_classes=4, tasks=["depth"])
    assert set(only.source("train")[0]) == {"image", "depth"}
    with pytest.raises(ZooError, match="'sal' is no task of NYUD"):
        NYUD("nowhere", tasks=["sal"])
    (tmp_path / "gt_sets").mkdir()
    (tmp_path / "gt_sets" / "train.txt").write_text("a\n")
    with pytest.raises(ZooError, match=r"a\.png"):
        NYUD(str(tmp_path)).source("train")[0]
    write_image(tmp_path / "images" / "a.png", np.zeros((8, 8)))
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "a.npy").write_bytes(b"nothing")
    with pytest.raises(ZooError, match=r"a\.npy: cannot be read .*expected an array of metres"):
        NYUD(str(tmp_path), tasks=["depth"]).source("train")[0]


def test_pascal_context(tmp_path):
    data = PASCALContext(str(tmp_path / "pascal"), size=(48, 48), sample=SMALL, batch_size=2)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert set(batch) == {"image", "semseg", "human_parts", "sal", "normals", "edge"}
    objects = batch["semseg"] > 0
    assert torch.equal(batch["human_parts"], objects * GROUP["torso"])
    assert torch.equal(batch["sal"], objects.long())
    assert batch["edge"].float().mean() < 0.2 and batch["edge"].any()
    assert batch["normals"].norm(dim=1).min() > 0.99


def test_normals_count_where_nyud_has_the_class(tmp_path):
    from scipy.io import loadmat, savemat

    data = PASCALContext(str(tmp_path / "pascal"), size=(48, 48), sample=SMALL, batch_size=2)
    name = data.source("train").items[0]
    path = data.root / f"pascal-context/trainval/{name}.mat"
    classes = loadmat(path)["LabelMap"]
    assert 1 not in INDOOR
    classes[:24] = 1
    savemat(path, {"LabelMap": classes})
    normals = data.source("train")[0]["normals"]
    assert not normals[:, :24].any() and normals[:, 24:].any()


def test_pictures_without_people_have_no_known_parts(tmp_path):
    from scipy.io import savemat

    data = PASCALContext(str(tmp_path / "pascal"), size=(48, 48), sample=SMALL, batch_size=2)
    name = data.source("train").items[0]
    path = data.root / f"human_parts/{name}.mat"
    animal = {"class": "dog", "class_ind": 12, "mask": np.ones((48, 48)), "parts": []}
    savemat(path, {"anno": {"imname": name, "objects": animal}})
    assert (data.source("train")[0]["human_parts"] == 255).all()
    path.write_text("no Matlab file")
    with pytest.raises(ZooError, match=r"cannot be read .*, expected a Matlab file with anno"):
        data.source("train")[0]
