import gzip
import json
import struct

import nibabel
import numpy as np
import pytest

from zoo.data.formats.volumes import (
    dataset_labels,
    nifti_stem,
    open_volume,
    read_label_volume,
    write_volume,
)
from zoo.errors import ZooError

AFFINE = np.array([[-1.5, 0, 0, 90], [0, 0, 2.0, -120], [0, 5.0, 0, -70], [0, 0, 0, 1]])


def saved(path, values, affine=AFFINE, kind=nibabel.Nifti1Image):
    nibabel.save(kind(values, affine), path)
    return path


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("shape", "full"),
    [
        ((6, 5, 4), (6, 5, 4, 1)),
        ((6, 5, 4, 3), (6, 5, 4, 3)),
        ((6, 5, 4, 1, 2), (6, 5, 4, 2)),
        ((6, 5), (6, 5, 1, 1)),
    ],
)
def test_volumes_and_their_slices(tmp_path, ending, kind, shape, full):
    values = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    volume = open_volume(saved(tmp_path / f"it.{ending}", values, kind=kind))
    assert volume.shape == full and np.array_equal(volume.affine, AFFINE)
    assert np.array_equal(volume.read(), values.reshape(full))
    assert np.array_equal(volume.read(full[2] - 1), values.reshape(full)[:, :, -1])
    assert volume.spacing == pytest.approx((2.0, 1.5, 5.0))


def test_stored_numbers_are_scaled_as_the_file_says(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "it.nii.gz")
    expected = nibabel.load(tmp_path / "it.nii.gz").get_fdata()
    np.testing.assert_allclose(open_volume(tmp_path / "it.nii.gz").read()[..., 0], expected)


def test_labels_are_written_where_the_volume_lies(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)
    image = nibabel.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_qform(AFFINE, code=1)
    image.header.set_sform(AFFINE, code=1)
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, tmp_path / "it.nii.gz")
    volume = open_volume(tmp_path / "it.nii.gz")
    labels = np.random.default_rng(1).integers(0, 4, (6, 5, 4))
    for highest, dtype in ((3, np.uint8), (300, np.uint16)):
        labels[0, 0, 0] = highest
        write_volume(tmp_path / "out" / "labels.nii.gz", labels, volume)
        written = nibabel.load(tmp_path / "out" / "labels.nii.gz")
        assert written.get_data_dtype() == dtype and written.shape == (6, 5, 4)
        assert np.array_equal(np.asarray(written.dataobj), labels)
        assert np.array_equal(written.affine, AFFINE)
        assert written.header.get_zooms() == image.header.get_zooms()[:3]
        assert written.header.get_xyzt_units() == ("mm", "sec")
        assert int(written.header["qform_code"]) == int(written.header["sform_code"]) == 1
        assert np.array_equal(read_label_volume(tmp_path / "out" / "labels.nii.gz"), labels)
        assert np.array_equal(
            read_label_volume(tmp_path / "out" / "labels.nii.gz", 2), labels[..., 2]
        )


def test_labels_are_whole_numbers(tmp_path):
    whole = np.arange(8.0).reshape(2, 2, 2)
    assert read_label_volume(saved(tmp_path / "a.nii", whole)).tolist() == whole.tolist()
    for values in (whole + 0.5, np.stack([whole] * 2, -1), np.full((2, 2, 2), np.nan)):
        with pytest.raises(ZooError, match="other values than whole numbers"):
            read_label_volume(saved(tmp_path / "b.nii", values))


def lying(path, shape, zipped):
    """A file whose header says ``shape``."""
    saved(path.with_name("honest.nii"), np.zeros((4, 4, 4), np.float32))
    content = bytearray(path.with_name("honest.nii").read_bytes())
    content[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("it.nii", (4, 4, 5), "the file has 608 bytes: it is cut"),
        ("it.nii", (30000, 30000, 30000), "30000 x 30000 x 30000 .* it is cut"),
        ("it.nii.gz", (30000, 30000, 3000), "would take 10,299,683 MiB, but only"),
        ("it.nii.gz", (4, 4, 5), "it.nii.gz: cannot be read"),
        ("it.nii", (4, 4, -4), "cannot be read|axes of"),
        ("it.nii", (4,), "axes of 4, expected"),
        ("it.nii", (2, 2, 2, 2, 2, 2), "axes of 2 x 2"),
    ],
)
def test_sizes_are_compared_with_the_file(tmp_path, name, shape, said):
    with pytest.raises(ZooError, match=said):
        open_volume(lying(tmp_path / name, shape, name.endswith("gz"))).read()


def test_what_is_no_volume_is_said(tmp_path):
    (tmp_path / "text.nii.gz").write_text("text")
    (tmp_path / "text.nii").write_text("text")
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    saved(tmp_path / "colour.nii", colours)
    saved(tmp_path / "other.mgz", np.zeros((2, 2, 2), np.float32), kind=nibabel.MGHImage)
    for name in ("text.nii.gz", "text.nii", "colour.nii", "other.mgz", "none.nii.gz"):
        with pytest.raises(ZooError, match=f"{name}.*expected a NIfTI file"):
            open_volume(tmp_path / name)


def test_names_without_their_endings(tmp_path):
    for name in ("a.b.nii.gz", "a.b.nii", "a.b.NII.GZ", "a.b.png"):
        assert nifti_stem(tmp_path / name) == "a.b"


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (
            {"0": "background", "2": "tumour", "10": "cyst", "1": "liver"},
            {0: "background", 1: "liver", 2: "tumour", 10: "cyst"},
        ),
        ({"background": 0, "tumour": 4, "oedema": 2}, {0: "background", 2: "oedema", 4: "tumour"}),
    ],
)
def test_labels_of_a_data_set(tmp_path, labels, wanted):
    assert dataset_labels(tmp_path / "dataset.json") is None
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "x", "labels": labels}))
    found = dataset_labels(tmp_path / "dataset.json")
    assert found == wanted and list(found) == list(wanted)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"labels": 3}', '{"labels": {"a": "b"}}', "[" * 100_000]
)
def test_a_dataset_json_that_is_none(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ZooError, match=r"dataset\.json: cannot be read .*, expected JSON with"):
        dataset_labels(tmp_path / "dataset.json")
