"""NIfTI data sets of one's own: their channels, classes and splits."""

import json

import nibabel
import numpy as np
import pytest
import torch

from zoo.data.dense.volumes import SYNAPSE_CLASSES, NiftiVolumes, Synapse
from zoo.data.formats.maps import SmallSample
from zoo.data.formats.volumes import open_volume
from zoo.data.synthetic.line_volumes import LINE_CLASSES, line_volumes
from zoo.errors import ZooError

SAMPLE = SmallSample(train=16, val=8, test=8, size=16)


def write(root, count=3, channels=None, values=(0, 1, 2), split=False, depth=4):
    """Volumes in the Decathlon's layout; ``split``: nnU-Net's, a file for each channel."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for i in range(1, count + 1):
        shape = (12, 10, depth)
        label = rng.choice(np.array(values, np.uint8), shape)
        label.flat[: len(values)] = values
        image = rng.normal(-300, 50 * i, (*shape, channels or 1)).astype(np.float32)
        parts = {f"p_{i}": image if channels else image[..., 0]}
        if split:
            parts = {f"p_{i}_{c:04d}": image[..., c] for c in range(channels)}
        for name, part in parts.items():
            nibabel.save(nibabel.Nifti1Image(part, np.eye(4)), root / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / "labelsTr" / f"p_{i}.nii.gz")
    return root


def whole(root, name):
    return np.asarray(nibabel.load(root / name).dataobj)


@pytest.mark.parametrize(("channels", "split"), [(None, False), (1, False), (3, False), (3, True)])
def test_channels_are_those_of_the_data(tmp_path, channels, split):
    root = write(tmp_path / "it", 3, channels, split=split)
    data = NiftiVolumes(str(root), image_size=12, batch_size=2, augment=False)
    assert data.in_chans == (channels or 1)
    sample = data.source("train")[1]
    assert sample["image"].shape == (channels or 1, 12, 10)
    if split:
        image = np.stack([whole(root, f"imagesTr/p_1_{c:04d}.nii.gz") for c in range(3)], -1)
    else:
        image = whole(root, "imagesTr/p_1.nii.gz").reshape(12, 10, 4, -1)
    wanted = (image - image.mean((0, 1, 2))) / image.std((0, 1, 2))
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0), wanted[:, :, 1], atol=1e-4)
    assert np.array_equal(sample["mask"], whole(root, "labelsTr/p_1.nii.gz")[..., 1])
    assert data.to_input(torch.ones(3, 5, 6)).shape == (channels or 1, 5, 6)


def test_volumes_stand_in_one_split_each(tmp_path):
    for count, test in ((3, [3]), (2, [2]), (11, [5, 10])):
        root = write(tmp_path / str(count), count, depth=1)
        data = NiftiVolumes(str(root), batch_size=1)
        names = {
            split: [labels.name for _, labels in data.volumes(split)] for split in ("train", "test")
        }
        assert names["test"] == [f"p_{i}.nii.gz" for i in test]
        assert names["train"] == [f"p_{i}.nii.gz" for i in range(1, count + 1) if i not in test]
    with pytest.raises(ZooError, match="holds 1 training volume, expected 2 or more"):
        NiftiVolumes(str(tmp_path / "2"), batch_size=1).source("train")


def test_classes_are_those_of_the_data(tmp_path, caplog):
    """Never those of a made data set or of a published one that a recipe has named."""
    root = write(tmp_path / "own", values=(0, 1, 4))
    data = NiftiVolumes(str(root), sample=SAMPLE, batch_size=2)
    data.setup("fit")
    assert data.class_names == ("background", "label 1", "label 4")
    assert "its classes are the numbers in its 3 label files, 0, 1, 4" in caplog.text
    found = {int(v) for sample in data.source("train") for v in sample["mask"].unique()}
    assert found == {0, 1, 2}, "numbers of classes, not of labels"
    labels = {"0": "background", "4": "tumour", "1": "liver"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    data = NiftiVolumes(str(root), sample=SAMPLE, batch_size=2)
    assert data.class_names == ("background", "liver", "tumour")
    renamed = NiftiVolumes(str(root), class_names=["a", "b", "c"], batch_size=2)
    assert dict(renamed.labels) == {0: "a", 1: "b", 4: "c"}
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    with pytest.raises(ZooError, match="label 4, expected 0, 1; set"):
        list(NiftiVolumes(str(root), batch_size=2).source("train"))


@pytest.mark.parametrize("kind", [Synapse, NiftiVolumes])
def test_made_volumes_have_the_classes_of_lines(tmp_path, kind):
    root = tmp_path / "made"
    data = kind(str(root), sample=SAMPLE, batch_size=2)
    assert not root.exists() and data.class_names == LINE_CLASSES
    data.source("train")
    for sample in (SAMPLE, None):  # whoever reads them
        assert kind(str(root), sample=sample, batch_size=2).class_names == LINE_CLASSES


def test_published_classes_where_nothing_else_is_said(tmp_path):
    assert Synapse(str(tmp_path), batch_size=1).class_names == SYNAPSE_CLASSES
    assert (
        NiftiVolumes(str(tmp_path), kind="acdc", batch_size=1).class_names[1] == "right ventricle"
    )


def test_a_users_volume_is_seen_as_the_training_data(tmp_path):
    root = write(tmp_path / "it")
    data = NiftiVolumes(str(root), image_size=12, batch_size=1, augment=False)
    slices = data.volume_input(open_volume(root / "imagesTr" / "p_1.nii.gz"))
    assert slices.shape == (4, 1, 12, 12)
    seen = torch.stack([data.eval_transform(data.source("train")[i])["image"] for i in range(4)])
    torch.testing.assert_close(slices, seen)
    packed = Synapse(str(tmp_path / "none"), image_size=12, batch_size=1)
    ct = packed.volume_input(open_volume(root / "imagesTr" / "p_1.nii.gz"))
    assert ct.min() >= 0 and ct.max() <= 1
    assert packed.standardised(np.array([-500.0, -125, 75, 275, 900])).tolist() == [0, 0, 0.5, 1, 1]
    assert packed.standardised(np.array([0.0, 0.3, 1])).tolist() == [0, 0.3, 1]
    write(tmp_path / "two", channels=2)
    with pytest.raises(ZooError, match="has 2 channels, expected 1 as in the training data"):
        data.volume_input(open_volume(tmp_path / "two" / "imagesTr" / "p_1.nii.gz"))


def test_volumes_that_do_not_fit_are_said(tmp_path):
    root = write(tmp_path / "it")
    image = root / "imagesTr" / "p_1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((12, 10, 5), np.float32), np.eye(4)), image)
    with pytest.raises(ZooError, match=r"p_1.nii.gz has 12 x 10 x 5 voxels, and .* others"):
        NiftiVolumes(str(root), batch_size=1).source("train")[0]
    image.unlink()
    with pytest.raises(ZooError, match=r"imagesTr lacks the images of .*p_1.nii.gz"):
        NiftiVolumes(str(root), batch_size=1).source("train")
    write(tmp_path / "mixed", channels=2)
    odd = nibabel.Nifti1Image(np.zeros((12, 10, 4), np.float32), np.eye(4))
    nibabel.save(odd, tmp_path / "mixed" / "imagesTr" / "p_2.nii.gz")
    with pytest.raises(ZooError, match=r"p_2.nii.gz: 1 channels, the first volume has 2"):
        list(NiftiVolumes(str(tmp_path / "mixed"), batch_size=1).source("val"))
    for path in (root / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(ZooError, match="holds no label files, expected imagesTr"):
        NiftiVolumes(str(root), batch_size=1).source("train")


def test_made_lines_have_brightnesses_of_their_own():
    (_, image, label), *_ = line_volumes(np.random.default_rng(0), 8, 48, 1)
    assert image.shape == label.shape == (8, 48, 48) and set(np.unique(label)) == {0, 1, 2, 3}
    means = [image[label == kind].mean() for kind in range(4)]
    np.testing.assert_allclose(means, (0.25, 0.49, 0.67, 0.85), atol=0.02)
