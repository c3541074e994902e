import numpy as np
import pytest
import rasterio
from PIL import Image

from zoo.data.formats.labels import read_label_colours, read_labels, read_mask
from zoo.errors import ZooError

YES = np.zeros((40, 40), bool)
YES[5:25, 10:30] = True


def two_colours(no, yes):
    return np.where(YES[..., None], yes, no).astype(np.uint8)


def palette_of(picture, *colours):
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def grey(yes, dtype=np.uint8, no=0):
    return Image.fromarray(np.where(YES, yes, no).astype(dtype))


READ_RIGHT = {
    "0/255": (grey(255), "png"),
    "0/1": (grey(1), "png"),
    "bilevel": (Image.fromarray(YES), "png"),
    "0/65535": (grey(65535, np.uint16), "png"),
    "0/1 of 16 bits": (grey(1, np.uint16), "png"),
    "0/255 of 16 bits": (grey(255, np.uint16), "png"),
    "0/1 of 32 bits": (grey(1, np.int32), "tif"),
    "0/1 as reals": (grey(1, np.float32), "tif"),
    "0/255 in RGB": (Image.fromarray(two_colours((0, 0, 0), (255, 255, 255))), "png"),
    "0/1 in RGB": (Image.fromarray(two_colours((0, 0, 0), (1, 1, 1))), "png"),
    "red in RGB": (Image.fromarray(two_colours((0, 0, 0), (128, 0, 0))), "png"),
    "opaque RGBA": (Image.fromarray(two_colours((0, 0, 0, 255), (255, 255, 255, 255))), "png"),
    "palette": (palette_of(grey(1), (0, 0, 0), (255, 0, 0)), "png"),
    "VOC's palette": (palette_of(grey(1), (0, 0, 0), (128, 0, 0)), "png"),
    "grey palette": (palette_of(grey(1), (0, 0, 0), (1, 1, 1)), "png"),
    "palette in the other order": (palette_of(grey(0, no=1), (255, 255, 255), (0, 0, 0)), "png"),
    "palette of a GIF": (palette_of(grey(1), (0, 0, 0), (255, 255, 255)), "gif"),
    "JPEG": (grey(255), "jpg"),
    "JPEG in colours": (Image.fromarray(two_colours((0, 0, 0), (255, 0, 0))), "jpg"),
    "JPEG stored again": ("jpg", "png"),
    "smooth": (grey(255).resize((80, 80), Image.Resampling.BICUBIC), "png"),
    "0/255 TIFF": (grey(255), "tif"),
    "palette TIFF": (palette_of(grey(1), (0, 0, 0), (255, 0, 0)), "tif"),
}


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_masks_are_read_as_they_are_meant(tmp_path, kind):
    picture, ending = READ_RIGHT[kind]
    if picture == "jpg":
        grey(255).save(tmp_path / "first.jpg", quality=90)
        picture = Image.open(tmp_path / "first.jpg")
        assert len(np.unique(np.asarray(picture))) > 3
    picture.save(tmp_path / f"it.{ending}")
    mask = read_mask(tmp_path / f"it.{ending}")
    assert mask.dtype == np.uint8
    if kind == "smooth":
        mask = mask[::2, ::2]
    assert np.array_equal(mask, YES)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_masks_of_one_value(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / "it.png")
    assert (read_mask(tmp_path / "it.png") == (value > 0)).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1, 255], "values 0, 1, 255, which do not say what is yes"),
        ([0, 128, 255], "values 0, 128, 255"),
        ([*[0] * 4, *[85] * 4, *[170] * 4, *[255] * 4], "values 0, 85, 170, 255"),
        ([0, 2], "values 0, 2,"),
        ([1, 2], "values 1, 2,"),
        ([0, 1, 2, 3], "values 0, 1, 2, 3"),
        ([1, 255], "values 1, 255"),
        (range(0, 100, 3), r"values 0, 3, 6, 9, 12, 15, 18, 21, \.\.\."),
    ],
)
def test_masks_of_several_classes_are_refused(tmp_path, values, said):
    row = np.array([*values], np.uint8)
    Image.fromarray(np.tile(row, (4, 1))).save(tmp_path / "it.png")
    with pytest.raises(ZooError, match=said):
        read_mask(tmp_path / "it.png")
    assert np.array_equal(read_mask(tmp_path / "it.png", soft=True)[0], row > 127)


@pytest.mark.parametrize(
    ("colours", "said"),
    [
        ([(0, 0, 0), (255, 0, 0), (0, 255, 0)], "3 colours, expected black and one other"),
        ([(255, 255, 255), (255, 0, 0)], "2 colours, none of them black"),
        ([(0, 0, 0, 0), (255, 0, 0, 255)], "partly transparent"),
    ],
)
def test_masks_of_several_colours_are_refused(tmp_path, colours, said):
    Image.fromarray(np.tile(np.array(colours, np.uint8), (4, 1, 1))).save(tmp_path / "it.png")
    with pytest.raises(ZooError, match=said):
        read_mask(tmp_path / "it.png")


def test_a_jpeg_without_white(tmp_path):
    """Black is exactly black in it; ones are not white."""
    grey(0).save(tmp_path / "it.jpg")
    assert not read_mask(tmp_path / "it.jpg").any()
    grey(1).save(tmp_path / "it.jpg", quality=100)
    with pytest.raises(ZooError, match="do not say what is yes"):
        read_mask(tmp_path / "it.jpg")


def test_the_threshold_is_of_smooth_masks(tmp_path):
    row = np.linspace(0, 255, 40).astype(np.uint8)
    Image.fromarray(np.tile(row, (4, 1))).save(tmp_path / "it.png")
    for threshold in (127, 200):
        assert np.array_equal(read_mask(tmp_path / "it.png", threshold)[0], row > threshold)
    deep = row.astype(np.uint16) * 257
    Image.fromarray(np.tile(deep, (4, 1))).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "deep.png", 200)[0], row > 200)


def geotiff(path, values, nodata):
    size = {"height": 2, "width": values.shape[1], "count": 1}
    with rasterio.open(path, "w", "GTiff", dtype="uint8", nodata=nodata, **size) as file:
        file.write(values, 1)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_no_data_is_not_known(tmp_path):
    values = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
    geotiff(tmp_path / "it.tif", values, 255)
    assert np.array_equal(read_mask(tmp_path / "it.tif"), values)
    geotiff(tmp_path / "it.tif", np.minimum(values, 1) * 255, 0)  # nobody means the unchanged
    assert np.array_equal(read_mask(tmp_path / "it.tif"), np.minimum(values, 1))
    geotiff(tmp_path / "it.tif", np.minimum(values, 1) * 255, 255)
    with pytest.raises(ZooError, match="values 0 and 255 for no data"):
        read_mask(tmp_path / "it.tif")
    geotiff(tmp_path / "it.tif", np.full((2, 3), 9, np.uint8), 9)
    assert (read_mask(tmp_path / "it.tif") == 255).all()


def test_labels_and_their_colours(tmp_path):
    picture = palette_of(grey(1), (0, 0, 0), (255, 0, 0))
    for name in ("it.png", "it.tif"):
        picture.save(tmp_path / name)
        assert np.array_equal(read_labels(tmp_path / name), YES)
        assert np.array_equal(
            read_label_colours(tmp_path / name), two_colours((0, 0, 0), (255, 0, 0))
        )
    (tmp_path / "text.tif").write_text("text")
    (tmp_path / "text.png").write_text("text")
    for name in ("text.tif", "text.png", "none.png", "none.tif"):
        with pytest.raises(ZooError, match=f"{name}.*expected a picture of labels"):
            read_labels(tmp_path / name)
