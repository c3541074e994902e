"""Masks of one's own: every way to write classes, every usual folder, and what cannot be told."""

import numpy as np
import pytest
from PIL import Image

from zoo.data import PictureMasks
from zoo.data.formats.maps import SmallSample
from zoo.errors import ZooError

NUMBERS = [np.array([[0, 1], [1, 0]]), np.array([[0, 2], [255, 1]])]


def write(root, masks, pictures="images", folder="masks", palette=None, ending="png"):
    for number, mask in enumerate(masks):
        mask = np.kron(mask, np.ones((4, 4, *[1] * (mask.ndim - 2)))).astype(np.uint8)
        place = root / folder / f"{number}.{ending}"
        for path in (place, root / pictures / f"{number}.jpg"):
            path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(mask)
        if palette:
            picture = Image.fromarray(mask, "P")
            picture.putpalette(palette)
        picture.save(place)
        Image.new("RGB", mask.shape[1::-1]).save(root / pictures / f"{number}.jpg")


def classes(root, **settings):
    data = PictureMasks(str(root), image_size=8, augment=False, **settings)
    found = [item["mask"].numpy()[::4, ::4] for item in map(data.read, data._pairs_of_all())]
    return data.class_names, found


@pytest.fixture(autouse=True)
def all_pairs(monkeypatch):
    """Whatever the split."""
    monkeypatch.setattr(PictureMasks, "_pairs", lambda self, split: self._folder_pairs(self.root))

    def read(self):
        return self.files("train")

    monkeypatch.setattr(PictureMasks, "_pairs_of_all", read, raising=False)


def test_numbers_with_gaps_and_what_does_not_count(tmp_path):
    write(tmp_path, NUMBERS)
    names, found = classes(tmp_path)
    assert names == ("0", "1", "2")
    for mine, wanted in zip(found, NUMBERS, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    (tmp_path / "classes.txt").write_text("ground\n\nroad\nriver\n")
    assert classes(tmp_path)[0] == ("ground", "road", "river")
    assert classes(tmp_path, class_names=["a", "b", "c"])[0] == ("a", "b", "c")
    with pytest.raises(ZooError, match=r"has 2 names, but the masks of .* have 3 classes: ground"):
        classes(tmp_path, class_names=["a", "b"])


@pytest.mark.parametrize("yes", [1, 255])
def test_yes_and_no(tmp_path, yes):
    write(tmp_path, [np.array([[0, yes], [yes, yes]]), np.array([[0, 0], [0, yes]])])
    names, found = classes(tmp_path)
    assert names == ("background", "foreground")
    np.testing.assert_array_equal(found[0], [[0, 1], [1, 1]])


def test_colours_of_a_palette_are_numbers_where_they_differ_between_files(tmp_path):
    """Each file alone has black and one colour."""
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128]
    masks = [np.array([[0, 1], [0, 0]]), np.array([[0, 3], [3, 0]])]
    write(tmp_path, masks, "JPEGImages", "SegmentationClass", palette)
    names, found = classes(tmp_path)
    assert names == ("0", "1", "3")
    np.testing.assert_array_equal(found[1], [[0, 2], [2, 0]])


def test_colours_need_a_table(tmp_path):
    red, green = [200, 0, 0], [0, 200, 0]
    write(tmp_path, [np.array([[red, green], [red, [1, 2, 3]]])], "img", "labels")
    with pytest.raises(ZooError, match=r"0.png: a mask of colours, .* data.init_args.colours="):
        classes(tmp_path)
    names, found = classes(tmp_path, colours={"roof": red, "tree": green})
    assert names == ("roof", "tree")
    np.testing.assert_array_equal(found[0], [[0, 1], [0, 255]])
    with pytest.raises(ZooError, match=r"0.png: none of the colours"):
        classes(tmp_path, colours={"sea": [0, 0, 9]})


def test_pictures_and_masks_must_fit(tmp_path):
    write(tmp_path, NUMBERS)
    Image.new("RGB", (9, 8)).save(tmp_path / "images" / "0.jpg")
    with pytest.raises(ZooError, match=r"0.png: 8 x 8 pixels, but 0.jpg has 9 x 8"):
        classes(tmp_path)
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(ZooError, match="lacks 1 of the 2 pictures"):
        classes(tmp_path)
    with pytest.raises(
        ZooError, match=r"has none of the folders images, image, .* expected images"
    ):
        classes(tmp_path / "masks")


def test_a_class_that_training_never_saw(tmp_path, monkeypatch):
    monkeypatch.undo()
    for split, numbers in {"train": (0, 1, 2), "val": (0, 4, 1)}.items():
        for _ in range(3):
            write(tmp_path / split, [np.array([[0, number], [2, 1]]) for number in numbers])
    data = PictureMasks(str(tmp_path), image_size=8)
    assert len(data.source("train")) == len(data.source("test")) == 3
    with pytest.raises(ZooError, match=r"1.png: class 4, but the training masks .* 0, 1, 2"):
        list(data.source("val"))


def test_a_folder_without_splits_is_shared_out(tmp_path, monkeypatch):
    monkeypatch.undo()
    write(tmp_path, NUMBERS * 10)
    data = PictureMasks(str(tmp_path), image_size=8)
    parts = {split: {str(i[0]) for i in data.files(split)} for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [16, 2, 2]
    assert len(set().union(*parts.values())) == 20
    sample = data.train_transform(data.source("train")[0])
    assert sample["image"].shape == (3, 8, 8) and sample["mask"].shape == (8, 8)


def test_the_made_sample(tmp_path, monkeypatch):
    monkeypatch.undo()
    data = PictureMasks(str(tmp_path / "it"), sample=SmallSample(4, 2, 2, 32), image_size=32)
    data.setup("fit")
    assert data.class_names == ("background", "head", "shirt")
    assert set(np.unique(next(iter(data.train_dataloader()))["mask"])) <= {0, 1, 2}
