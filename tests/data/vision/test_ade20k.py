import numpy as np
import pytest
import torch

from zoo.data.formats.maps import SmallSample, write_image
from zoo.data.synthetic.streets_and_rooms import CLASSES
from zoo.data.vision.ade20k import ADE20K
from zoo.errors import ZooError

SAMPLE = SmallSample(train=8, val=2, test=4, size=48)


def of(root, **kwargs):
    return ADE20K(str(root), crop=48, short_side=48, long_side=96, batch_size=4, **kwargs)


def test_made_data_have_the_published_layout(tmp_path):
    data = of(tmp_path / "ade", sample=SAMPLE)
    data.setup("fit")
    assert (tmp_path / "ade/annotations/training/ADE_train_00000008.png").is_file()
    assert (tmp_path / "ade/images/validation/ADE_val_00000004.jpg").is_file()
    assert tuple(data.class_names) == CLASSES
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 48, 48) and batch["mask"].shape == (4, 48, 48)
    assert set(batch["mask"].unique().tolist()) <= {*range(len(CLASSES)), 255}


def test_label_0_is_other_and_pictures_keep_their_shape(tmp_path):
    data = of(tmp_path / "ade", sample=SAMPLE)
    data.source("train")
    labels = np.zeros((30, 80), np.uint8)
    labels[:, 40:] = 9
    for folder, name, pixels in (
        ("annotations", "ADE_val_00000001.png", labels),
        ("images", "ADE_val_00000001.jpg", np.dstack([labels] * 3)),
    ):
        write_image(tmp_path / "ade" / folder / "validation" / name, pixels)
    sample = data.source("test")[0]
    assert sample["mask"].unique().tolist() == [8, 255]
    batch = data.eval_transform(sample)
    assert batch["image"].shape == (3, 36, 96)  # the long side is at its limit
    assert batch["mask"].shape == (30, 80)
    assert data.input_size(30, 40) == (48, 64)
    padded = data.train_transform(sample)
    assert padded["image"].shape == (3, 48, 48) and padded["mask"].shape == (48, 48)


def test_mistakes_are_one_line(tmp_path):
    data = of(tmp_path / "ade", sample=SAMPLE)
    data.source("train")
    labels = tmp_path / "ade/annotations/validation/ADE_val_00000001.png"
    write_image(labels, np.full((48, 48), 11, np.uint8))
    with pytest.raises(ZooError, match=r"a label of 11, but objectInfo150.txt lists 9 classes"):
        data.source("test")[0]
    (tmp_path / "ade/objectInfo150.txt").write_text("Idx Name\n1 wall\n")
    with pytest.raises(ZooError, match="tabs between them"):
        _ = of(tmp_path / "ade").class_names
    (tmp_path / "ade/objectInfo150.txt").unlink()
    with pytest.raises(ZooError, match=r"objectInfo150.txt is missing"):
        _ = of(tmp_path / "ade").class_names


def test_the_same_seed_gives_the_same_crop(tmp_path):
    data = of(tmp_path / "ade", sample=SAMPLE)
    first, second = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first["image"], second["image"])
