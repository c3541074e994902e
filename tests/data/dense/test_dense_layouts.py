"""Data sets with maps: the small sample through the reader, and what users get wrong."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from zoo.data.dense.cityscapes import CLASSES, Cityscapes
from zoo.data.dense.crowds import UCFQNRF, ShanghaiTech
from zoo.data.dense.inpainting import Inpainting
from zoo.data.dense.portraits import Portraits
from zoo.data.dense.volumes import NiftiVolumes, Synapse
from zoo.data.dense.xrays import COVIDx
from zoo.data.formats.maps import SmallSample
from zoo.errors import ZooError

SAMPLE = SmallSample(train=24, val=4, test=4, size=64)
KINDS = {
    "portraits": (Portraits, {"image_size": 32}),
    "cityscapes": (Cityscapes, {"crop": [48, 64]}),
    "synapse": (Synapse, {"image_size": 32}),
    "msd": (NiftiVolumes, {"image_size": 32, "kind": "msd"}),
    "acdc": (NiftiVolumes, {"image_size": 32, "kind": "acdc"}),
    "shanghaitech": (ShanghaiTech, {"crop": 48}),
    "ucf": (UCFQNRF, {"crop": 48}),
    "inpainting": (Inpainting, {"image_size": 32}),
    "xrays": (COVIDx, {"image_size": 32}),
}


STREET = "made/made_000000_000019"


def build(kind: str, root: Path, sample: SmallSample | None = SAMPLE):
    data_class, options = KINDS[kind]
    return data_class(root=str(root), sample=sample, batch_size=2, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each small sample, made once."""
    roots = {kind: tmp_path_factory.mktemp("made") / kind for kind in KINDS}
    for kind, root in roots.items():
        build(kind, root).source("train")
    return roots


@pytest.mark.parametrize("kind", KINDS)
def test_batches(made, kind):
    data = build(kind, made[kind], sample=None)
    data.setup("fit")
    data.setup("test")
    shapes = {
        "portraits": {"image": (2, 3, 32, 32), "mask": (2, 32, 32)},
        "cityscapes": {"image": (2, 3, 48, 64), "mask": (2, 48, 64)},
        "synapse": {"image": (2, 1, 32, 32), "mask": (2, 32, 32), "volume": (2,)},
        "msd": {"image": (2, 4, 32, 32), "mask": (2, 32, 32), "volume": (2,)},
        "acdc": {"image": (2, 1, 32, 32), "mask": (2, 32, 32), "volume": (2,)},
        "inpainting": {
            "image": (2, 3, 32, 32),
            "structure": (2, 3, 32, 32),
            "mask": (2, 1, 32, 32),
        },
    }
    shapes["shanghaitech"] = shapes["ucf"] = {
        "image": (2, 3, 48, 48),
        "density": (2, 1, 24, 24),
        "attention": (2, 1, 24, 24),
        "count": (2,),
        "short_side": (2,),
    }
    for loader in (data.train_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        if kind == "xrays":
            assert batch[0].shape == (2, 3, 32, 32) and batch[1].shape == (2,)
            if len(batch) == 3:
                assert batch[2].shape == (2, 1, 32, 32) and set(batch[2].unique().tolist()) <= {
                    0,
                    1,
                }
            continue
        wanted = dict(shapes[kind])
        if kind in ("shanghaitech", "ucf"):
            points = [(batch.pop("points"), batch.pop("visible"))]
            assert all(len(a) == len(b) for a, b in zip(*points[0], strict=True))
            if loader.batch_size and batch["image"].shape[-1] == 64:  # whole pictures
                wanted = {
                    k: (*v[:2], v[2] * 64 // 48, v[3] * 64 // 48) if len(v) == 4 else v
                    for k, v in wanted.items()
                }
        if kind == "cityscapes" and batch["image"].shape[-2] == 64:  # whole pictures
            wanted = {"image": (2, 3, 64, 64), "mask": (2, 64, 64)}
        assert {name: tuple(value.shape) for name, value in batch.items()} == wanted
        assert batch["image"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["portraits", "shanghaitech", "inpainting"])
def test_a_shown_input_is_the_picture(made, kind):
    data = build(kind, made[kind])
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    shown = data.to_display(data.to_input(image))
    assert np.array_equal(shown, image.permute(1, 2, 0).numpy())
    torch.testing.assert_close(data.to_input(image / 255), data.to_input(image))


def test_portraits_are_scaled_as_the_published_weights_want(made):
    data = build("portraits", made["portraits"])
    red = torch.zeros(3, 1, 1, dtype=torch.uint8)
    red[0] = 255
    blue, green, last = data.to_input(red).flatten().tolist()
    assert last == pytest.approx((255 - 132.35703) / 68.29726 / 255)
    assert blue == pytest.approx(-107.304565 / 63.97182 / 255)
    assert green == pytest.approx(-115.69884 / 65.1337 / 255)


def test_ids_of_streets_become_numbers_of_classes(made):
    source = build("cityscapes", made["cityscapes"]).source("val")
    seen = {int(v) for i in range(4) for v in source[i]["mask"].unique()}
    names = list(CLASSES)
    assert {names[v] for v in seen - {255}} <= {
        "road",
        "sidewalk",
        "building",
        "wall",
        "vegetation",
        "terrain",
        "sky",
    } and len(seen) > 3
    assert len(CLASSES) == 19


def test_augmented_portraits_keep_their_masks(made):
    data = build("portraits", made["portraits"])
    for seed in range(20):
        torch.manual_seed(seed)
        sample = data.train_transform(data.source("train")[seed])
        assert sample["image"].isfinite().all() and set(sample["mask"].unique().tolist()) <= {0, 1}


def test_counts_survive_scaling_and_cropping(made):
    data = build("shanghaitech", made["shanghaitech"])
    data.sigma = 1.0
    stored = data.source("test")[0]
    whole = data.eval_transform(stored)
    assert whole["count"] == len(stored["points"])
    assert float(whole["density"].sum()) == pytest.approx(len(stored["points"]), rel=1e-4)
    assert whole["attention"].min() == 0 and whole["attention"].max() == 1
    for seed in range(10):
        torch.manual_seed(seed)
        cut = data.train_transform(stored)
        assert float(cut["density"].sum()) == pytest.approx(float(cut["count"]), rel=1e-4)
        assert (cut["visible"] >= 0.3).all() and (cut["visible"] <= 1).all()


def test_slices_of_a_volume_come_in_order(made):
    data = build("synapse", made["synapse"])
    data.setup("test")
    volumes = torch.cat([batch["volume"] for batch in data.test_dataloader()]).tolist()
    assert volumes == sorted(volumes) and len(set(volumes)) == 2


def test_half_of_the_training_xrays_are_positive(made):
    source = build("xrays", made["xrays"]).source("train")
    labels = [label for _, label in source.items]
    assert sum(labels) * 2 == len(labels)


def test_masks_follow_their_xrays(made):
    data = build("xrays", made["xrays"])
    sample = data.source("train")[0]
    lungs_before = []
    for seed in range(5):
        torch.manual_seed(seed)
        image, _, mask = data.train_transform(sample)
        rim = (max_pool2d(mask, 3, 1, 1) + max_pool2d(-mask, 3, 1, 1) > 0)[0]
        ground = ~rim & (image[0] > 0)
        assert image[0][rim].mean() > image[0][ground].mean() + 0.05, "outlines are bright"
        lungs_before.append(mask)
    assert not torch.equal(lungs_before[0], lungs_before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_folder_is_said(kind, tmp_path):
    with pytest.raises(ZooError, match=r"data\.init_args\.root: .*nowhere"):
        build(kind, tmp_path / "nowhere", sample=None).setup("fit")


@pytest.mark.parametrize(
    ("kind", "file", "expected"),
    [
        ("portraits", "Portrait/images_data_crop/00001.jpg", "expected a picture"),
        ("portraits", "Portrait/GT_png/00001_mask.png", "expected a picture of labels"),
        ("portraits", "Portrait/train.txt", "expected a list of numbers"),
        (
            "cityscapes",
            f"gtFine/train/{STREET}_gtFine_labelIds.png",
            "expected a picture of labels",
        ),
        ("synapse", "train_npz/case0005_slice000.npz", "expected an .npz file"),
        ("synapse", "test_vol_h5/case0001.npy.h5", "expected an HDF5 file"),
        ("msd", "imagesTr/BRATS_001.nii.gz", "expected a NIfTI file"),
        ("acdc", "patient001/patient001_frame01_gt.nii.gz", "expected a NIfTI file of labels"),
        ("shanghaitech", "train_data/ground_truth/GT_IMG_1.mat", "expected a MATLAB file"),
        ("shanghaitech", "train_data/images/IMG_1.jpg", "expected a picture"),
        ("ucf", "train/img_0000.npy", "expected an array of points"),
        ("inpainting", "train/images/00000.png", "expected a picture"),
        ("inpainting", "masks/00000.png", "expected a picture of labels"),
        ("xrays", "data/train/train00000.png", "expected a picture"),
        ("xrays", "masks/train/train00000.png", "expected a picture of labels"),
        ("xrays", "labels/train_made.txt", "expected patient, file and negative or positive"),
    ],
)
def test_text_in_place_of_a_file_is_said(kind, file, expected, tmp_path):
    build(kind, tmp_path / "set").source("train")
    path = tmp_path / "set" / file
    assert path.is_file()
    path.write_text("this is text\n")
    data = build(kind, tmp_path / "set")
    with pytest.raises(ZooError, match=rf"{re.escape(path.name)}.*{re.escape(expected)}"):
        for split, transform in (
            ("train", data.train_transform),
            ("val", data.eval_transform),
            ("test", data.eval_transform),
        ):
            source = data.source(split)
            for i in range(len(source)):
                transform(source[i])


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("portraits", "Portrait/images_data_crop/00001.jpg"),
        ("portraits", "Portrait/GT_png/00001_mask.png"),
        ("acdc", "patient001/patient001_frame01.nii.gz"),
        ("shanghaitech", "train_data/ground_truth/GT_IMG_1.mat"),
        ("ucf", "train/img_0000.npy"),
        ("xrays", "data/train/train00000.png"),
        ("xrays", "masks/train/train00000.png"),
    ],
)
def test_a_file_that_is_gone_is_said(kind, file, tmp_path):
    build(kind, tmp_path / "set").source("train")
    path = tmp_path / "set" / file
    path.unlink()
    data = build(kind, tmp_path / "set")
    source = data.source("train")
    with pytest.raises(ZooError, match=re.escape(path.name)):
        for i in range(len(source)):
            data.train_transform(source[i])


def test_a_sample_with_other_settings_is_not_overwritten(made):
    with pytest.raises(ZooError, match="holds a sample made with other settings"):
        build("portraits", made["portraits"], SmallSample(train=25)).source("train")


def test_labels_beyond_the_classes_are_said(made):
    data = Synapse(root=str(made["synapse"]), class_names=("background", "line"), batch_size=2)
    source = data.source("train")
    with pytest.raises(ZooError, match="label 3, expected 0, 1; set"):
        for i in range(len(source)):
            source[i]


def test_smoothed_copies_go_by_their_names(made, tmp_path):
    shutil.copytree(made["inpainting"], tmp_path / "set")
    folder = tmp_path / "set" / "test"
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_stem(str(int(path.stem) + 1)))  # 1, 2, ..., 10, not padded
    first = folder / "structure" / "1.png"
    Image.open(first).save(first.with_suffix(".bmp"))
    first.unlink()
    files = build("inpainting", tmp_path / "set").files("test")
    assert [(i, a.stem, b.name) for i, a, b in files[:2]] == [(0, "1", "1.bmp"), (1, "2", "2.png")]
    assert [int(a.stem) for _, a, _ in files] == list(range(1, len(files) + 1))
    (folder / "structure" / "2.png").unlink()
    with pytest.raises(ZooError, match="structure lacks 1 of the"):
        build("inpainting", tmp_path / "set").files("test")


def test_coloured_labels_are_said(made, tmp_path):
    build("portraits", tmp_path / "set").source("train")
    path = tmp_path / "set" / "Portrait/GT_png/00001_mask.png"
    colours = Image.new("RGB", (64, 64), "red")
    colours.putpixel((0, 0), (0, 255, 0))
    colours.save(path)
    with pytest.raises(ZooError, match="a mask of 2 colours, none of them black"):
        build("portraits", tmp_path / "set").source("train")[0]
