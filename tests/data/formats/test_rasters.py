import json

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from zoo.data.formats.rasters import MapFile, open_pair, open_raster, windows, write_geotiff
from zoo.errors import ZooError

UTM = "EPSG:32632"
GRID = from_origin(500_000, 5_300_000, 0.5, 0.5)


@pytest.mark.parametrize("full", [5, 64, 65, 100, 256, 1000])
def test_windows_cover_a_length_once(full):
    parts = windows(full, 64, 16)
    assert all(stop - start == min(64, full) for start, stop, _, _ in parts)
    assert [p for _, _, first, last in parts for p in range(first, last)] == list(range(full))
    for start, stop, first, last in parts:
        assert start == first == 0 or first - start >= 8
        assert stop == last == full or stop - last >= 8


def picture(rng, height=60, width=80):
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_windows_of_tiff_and_png_agree(tmp_path):
    pixels = picture(np.random.default_rng(0))
    write_geotiff(tmp_path / "a.tif", pixels, UTM, GRID)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with open_raster(tmp_path / name) as raster:
            assert (raster.height, raster.width) == (60, 80)
            part, known = raster.read(10, 20, 30, 40)
            assert np.array_equal(part, pixels[10:40, 20:60]) and known.all()
            assert raster.overview(30, 40).shape == (30, 40, 3)
            assert (raster.crs is None) == (name == "a.png")


def test_second_picture_is_brought_to_the_grid_of_the_first(tmp_path):
    ramp = np.tile(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], (60, 1, 3))
    write_geotiff(tmp_path / "before.tif", ramp, UTM, GRID)
    moved = from_origin(
        500_005, 5_300_000, 0.5, 0.5
    )  # the same ground, cut 10 columns further right
    write_geotiff(tmp_path / "after.tif", ramp[:, 10:], UTM, moved)
    with open_pair(tmp_path / "before.tif", tmp_path / "after.tif") as (first, second):
        assert (second.height, second.width) == (60, 80)
        pixels, known = second.read(0, 0, 60, 80)
        assert np.array_equal(known[0], np.arange(80) >= 10)
        assert np.abs(pixels[:, 12:].astype(int) - ramp[:, 12:]).max() <= 1
        assert np.array_equal(first.read(0, 0, 60, 80)[0], ramp)


def test_maps_keep_the_georeference(tmp_path):
    pixels = picture(np.random.default_rng(0))
    write_geotiff(tmp_path / "a.tif", pixels, UTM, GRID)
    labels = np.zeros((60, 80), np.uint8)
    labels[10:20, 10:30] = 1  # 10 m x 5 m
    labels[12:14, 12:14] = 0  # a hole
    labels[40:44, 50:54] = 2
    labels[50:] = 255
    with open_raster(tmp_path / "a.tif") as raster:
        result = MapFile(tmp_path / "map", raster, {1: (255, 0, 0), 2: (0, 255, 0)})
        result.write(labels[:30], 0, 0)
        result.write(labels[30:], 30, 0)
        result.close()
        assert result.write_polygons(("none", "shed", "house")) == 2
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.crs == UTM and written.transform == GRID and written.nodata == 255
        assert np.array_equal(written.read(1), labels)
        assert written.colormap(1)[2][:3] == (0, 255, 0)
    features = json.loads((tmp_path / "map.geojson").read_text())["features"]
    found = {f["properties"]["class"]: f for f in features}
    assert found["shed"]["properties"] == {
        "label": 1, "class": "shed", "pixels": 196, "area_m2": 49.0,
    }  # fmt: skip
    assert len(found["shed"]["geometry"]["coordinates"]) == 2
    longitude, latitude = found["house"]["geometry"]["coordinates"][0][0]
    assert 8.9 < longitude < 9.1 and 47.8 < latitude < 47.9


def test_map_of_a_plain_picture_is_png(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    with open_raster(tmp_path / "a.png") as raster:
        result = MapFile(tmp_path / "map", raster, {1: (255, 0, 0)})
        result.write(np.eye(6, 8, dtype=np.uint8), 0, 0)
        result.close()
    with Image.open(tmp_path / "map.png") as written:
        assert np.array_equal(np.asarray(written), np.eye(6, 8))
        assert written.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert result.overview(3, 4).shape == (3, 4)


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    deep = {"driver": "GTiff", "dtype": "uint16", "height": 4, "width": 4, "count": 1}
    with rasterio.open(tmp_path / "deep.tif", "w", crs=UTM, transform=GRID, **deep) as file:
        file.write(np.zeros((1, 4, 4), np.uint16))
    (tmp_path / "broken.tif").write_bytes(b"no picture")
    pixels = picture(np.random.default_rng(0))
    write_geotiff(tmp_path / "a.tif", pixels, UTM, GRID)
    write_geotiff(tmp_path / "far.tif", pixels, UTM, from_origin(700_000, 5_300_000, 0.5, 0.5))
    write_geotiff(tmp_path / "plain.tif", pixels[:30])
    for names, expected in (
        (("deep.tif", "deep.tif"), "values of type uint16, expected 8-bit ones"),
        (("broken.tif", "a.tif"), "broken.tif: not a readable TIFF file"),
        (("none.tif", "a.tif"), "none.tif: no such file"),
        (("a.tif", "far.tif"), "do not overlap on the ground"),
        (("a.tif", "plain.tif"), "60x80 pixels and .*30x80, expected one size"),
    ):
        with pytest.raises(ZooError, match=expected), open_pair(*(tmp_path / n for n in names)):
            pass
    monkeypatch.setattr("zoo.data.formats.rasters.rasterio", None)
    with (
        pytest.raises(ZooError, match=r"pip install 'ssm-zoo\[geo\]'"),
        open_raster(tmp_path / "a.tif"),
    ):
        pass
