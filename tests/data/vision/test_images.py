import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import Augmentation, Digits, HuggingFaceImages, ImageFolder
from zoo.errors import ZooError


def test_digits_split_is_fixed_and_disjoint():
    data = Digits(image_size=16)
    splits = {name: data.load(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    assert [label for _, label in splits["test"]][:8] == [
        label for _, label in Digits().load("test")
    ][:8]
    assert {label for _, label in splits["val"]} == set(range(10))


def test_images_and_their_display():
    data = Digits(image_size=24, crop_pct=1.0, batch_size=8)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (8, 3, 24, 24) and images.dtype == torch.float32
    assert labels.dtype == torch.int64
    shown = data.to_display(images)
    assert shown.shape == (8, 24, 24, 3) and shown.dtype == np.uint8
    original = np.asarray(data.load("val")[0][0].resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(shown[0].astype(int) - original).max() <= 1


def test_no_augmentation_is_a_plain_resize():
    still = Augmentation(scale=None, hflip=0.0, color_jitter=0.0)
    data = Digits(image_size=16, crop_pct=1.0, augmentation=still)
    sample = data.load("train")[0]
    assert torch.allclose(
        data.train_transform(sample)[0], data.eval_transform(sample)[0], atol=0.02
    )


def test_every_operation_of_the_policies_runs():
    strong = Augmentation(auto_augment="rand-m10-n6-mstd2-inc1", re_prob=1.0)
    data = Digits(image_size=16, augmentation=strong)
    sample = data.load("train")[0]
    for _ in range(60):
        image, _ = data.train_transform(sample)
        assert image.shape == (3, 16, 16) and image.isfinite().all()


@pytest.fixture
def folders(tmp_path):
    """ImageNet's layout with two of its classes."""
    for split, per_class in (("train", 3), ("val", 2)):
        for label, name in enumerate(("n01440764", "n01443537")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(per_class):
                picture = Image.new("RGB", (40, 30 + number), (255 * label, 90, 20))
                picture.save(tmp_path / split / name / f"{number}.JPEG")
    return tmp_path


def test_image_folder(folders):
    data = ImageFolder(root=str(folders), image_size=16, batch_size=2)
    data.setup("fit")
    data.setup("test")
    assert list(data.class_names) == ["tench", "goldfish"]
    assert [len(data.source(s)) for s in ("train", "val", "test")] == [6, 4, 4]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (2, 3, 16, 16) and labels.tolist() == [0, 0]
    batches = [labels for _, labels in data.train_dataloader()]
    assert sorted(torch.cat(batches).tolist()) == [0, 0, 0, 1, 1, 1]


def test_image_folder_with_a_test_split_and_plain_names(folders):
    for split in ("train", "val"):
        for old, new in (("n01440764", "cat"), ("n01443537", "dog")):
            (folders / split / old).rename(folders / split / new)
    (folders / "test" / "dog").mkdir(parents=True)
    Image.new("L", (9, 9)).save(folders / "test" / "dog" / "x.png")
    data = ImageFolder(root=str(folders), image_size=8)
    data.setup("test")
    assert data.class_names == ["cat", "dog"]
    assert data.source("test")[0][1] == 1


def pictures_of(data, split):
    return [str(path.relative_to(data.root)) for path, _ in data.source(split).files]


def test_splits_of_other_names_and_none(folders, caplog):
    (folders / "val").rename(folders / "valid")
    whole = ImageFolder(root=str(folders), batch_size=2)
    assert len(whole.source("val")) == len(whole.source("test")) == 4 and not caplog.text
    for label, name in enumerate(("n01440764", "n01443537")):
        for number in range(3, 25):
            picture = Image.new("RGB", (9, 9), (255 * label, number, 0))
            picture.save(folders / "train" / name / f"{number}.JPEG")
        for path in (folders / "valid" / name).iterdir():
            path.unlink()
        (folders / "valid" / name).rmdir()
    (folders / "valid").rmdir()
    parts = []
    for order in (("train", "val", "test"), ("test", "val", "train")):
        data = ImageFolder(root=str(folders), batch_size=2)
        parts.append({split: pictures_of(data, split) for split in order})
        assert caplog.text.count("has no folder val: a tenth of each class") == len(parts)
    assert parts[0] == parts[1] and parts[0]["val"] == parts[0]["test"]
    train, val = parts[0]["train"], parts[0]["val"]
    assert (len(train), len(val)) == (46, 4) and not set(train) & set(val)
    assert [sum("n01443537" in name for name in part) for part in (train, val)] == [23, 2]


def test_a_folder_per_class_alone(tmp_path, caplog):
    """Every class is in every split; it is the same pictures each time, 2 before 10."""
    for name, count in (("a", 30), ("b", 12), ("c", 3), ("d", 2), ("e", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{number}.png")
    data = ImageFolder(root=str(tmp_path), batch_size=1000)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == list("abcde")
    files = {split: pictures_of(data, split) for split in ("train", "val", "test")}
    assert sorted(name for part in files.values() for name in part) == sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.png")
    )
    counts = {s: [sum(n[0] == c for n in files[s]) for c in "abcde"] for s in files}
    assert counts == {"train": [24, 10, 1, 1, 1], "val": [3, 1, 1, 1, 0], "test": [3, 1, 1, 0, 0]}
    again = ImageFolder(root=str(tmp_path), batch_size=2)
    assert {split: pictures_of(again, split) for split in ("test", "train", "val")} == files
    assert (
        "has no folder train: a tenth of each class is kept for validation, another" in caplog.text
        and data.batch_size == 36
    )


@pytest.mark.parametrize(
    "damage, expected",
    [
        (
            lambda f: (f / "train").rename(f / "training"),
            "train is missing, expected a folder with train/",
        ),
        (lambda f: (f / "train" / "empty").mkdir(), "train/empty holds no pictures"),
        (lambda f: (f / "val" / "new").mkdir(), "val/new: a class that"),
    ],
)
def test_wrong_layout(folders, damage, expected):
    damage(folders)
    with pytest.raises(ZooError, match=expected):
        ImageFolder(root=str(folders), batch_size=2).setup("fit")


def test_missing_and_empty_root(tmp_path):
    with pytest.raises(ZooError, match="is not a folder, expected a folder with train"):
        ImageFolder(root=str(tmp_path / "no")).setup("fit")
    (tmp_path / "train").mkdir()
    with pytest.raises(ZooError, match="train holds no folders"):
        ImageFolder(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_text_named_like_a_picture_is_named(folders, workers):
    bad = folders / "train" / "n01440764" / "1.JPEG"
    bad.write_text("not a picture")
    data = ImageFolder(root=str(folders), image_size=16, batch_size=6, num_workers=workers)
    data.setup("fit")
    with pytest.raises(ZooError) as caught:
        list(data.train_dataloader())
    from zoo.command import one_line

    assert one_line(caught.value).startswith(f"{bad}: not a readable picture")


@pytest.fixture
def hub_folder(tmp_path):
    """A data set as ``datasets`` saves it."""
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog", "eel"])}
    )
    rows = {
        "img": [Image.new("L", (12, 10), 20 * i) for i in range(12)],
        "fine_label": [i % 3 for i in range(12)],
    }
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_hugging_face_data_set(hub_folder):
    columns = dict(image_column="img", label_column="fine_label")
    data = HuggingFaceImages(hub_folder, image_size=8, batch_size=4, **columns)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ["cat", "dog", "eel"]
    assert [len(data.source(s)) for s in ("train", "val", "test")] == [10, 2, 12]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (4, 3, 8, 8) and labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, "image_column: .* has no column 'image', it has img, fine_label"),
        ({"image_column": "img", "label_column": "y"}, "label_column: .* has no column 'y'"),
        (
            {"train_split": "training"},
            "train_split: .* has no split 'training', it has train, test",
        ),
        ({"path": "/no/such"}, "cannot open data set '/no/such'"),
    ],
)
def test_wrong_hugging_face_settings(hub_folder, settings, expected, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ZooError, match=expected):
        HuggingFaceImages(**{"path": hub_folder, **settings}).setup("fit")
