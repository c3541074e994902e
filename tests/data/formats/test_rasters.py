import json

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from zoo.data.formats.labels import read_mask
from zoo.data.formats.map_files import MapFile, windows, write_geotiff
from zoo.data.formats.pictures import read_picture
from zoo.data.formats.rasters import open_pair, open_raster
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


def bands(path, values, crs=UTM, grid=GRID, **profile):
    """Write [C, H, W] of any type."""
    count, height, width = values.shape
    size = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", "GTiff", crs=crs, transform=grid, **size, **profile) as file:
        file.write(values)


def whole(raster):
    return raster.read(0, 0, raster.height, raster.width)


def test_bands_of_colours(tmp_path, caplog, monkeypatch):
    """Those that the file names, the first three, or those that are asked for; said once."""
    monkeypatch.setattr("zoo.data.formats.rasters._said", set())
    values = np.random.default_rng(0).integers(0, 255, (5, 20, 30)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "it.tif", "w", "GTiff", count=5, height=20, width=30, dtype="uint8",
        crs=UTM, transform=GRID, photometric="minisblack",
    ) as file:  # fmt: skip
        file.write(values)
    for wanted, chosen in ((None, [0, 1, 2]), ((4, 3, 2), [3, 2, 1])):
        with open_raster(tmp_path / "it.tif", wanted) as raster:
            assert np.array_equal(whole(raster)[0], values[chosen].transpose(1, 2, 0))
    assert caplog.text.count("has 5 bands: 1, 2, 3 are taken for red, green and blue") == 1
    with rasterio.open(tmp_path / "it.tif", "r+") as file:
        names = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, *[ColorInterp.undefined] * 2]
        file.colorinterp = names
    with open_raster(tmp_path / "it.tif") as raster:
        assert np.array_equal(whole(raster)[0], values[[2, 1, 0]].transpose(1, 2, 0))
    bands(tmp_path / "one.tif", values[:1])
    with open_raster(tmp_path / "one.tif") as raster:
        assert np.array_equal(whole(raster)[0], values[[0, 0, 0]].transpose(1, 2, 0))
    for wrong in ((0, 1, 2), (1, 2, 6), (1, 2)):
        with (
            pytest.raises(ZooError, match="expected three numbers from 1 to 5"),
            open_raster(tmp_path / "it.tif", wrong),
        ):
            pass


@pytest.mark.parametrize("kind", ["unspecified", "called alpha", "an alpha"])
def test_a_fourth_band_is_alpha_only_if_it_is_one(tmp_path, kind):
    """rasterio writes 'alpha' on near infrared, too."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 255, (4, 20, 30)).astype(np.uint8)
    if kind == "an alpha":
        values[3] = np.where(np.arange(30) < 10, 0, 255)
    else:
        values[3, :, :10] = 0  # water is black in near infrared
    bands(
        tmp_path / "it.tif",
        values,
        photometric="rgb",
        alpha="no" if kind == "unspecified" else "yes",
    )
    with open_raster(tmp_path / "it.tif") as raster:
        pixels, known = whole(raster)
    assert np.array_equal(pixels, values[:3].transpose(1, 2, 0))
    assert np.array_equal(
        known, np.tile(np.arange(30) >= (10 if kind == "an alpha" else 0), (20, 1))
    )
    read = np.asarray(read_picture(tmp_path / "it.tif"))
    there = slice(10, None) if kind == "an alpha" else slice(None)
    assert np.array_equal(read[:, there], values[:3].transpose(1, 2, 0)[:, there])
    assert kind != "an alpha" or (read[:, :10] == 255).all()


def test_a_fourth_band_of_which_nothing_is_said(tmp_path):
    """TIFF's own rule: without ExtraSamples the band means nothing."""
    values = np.random.default_rng(0).integers(1, 255, (20, 30, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "it.tif")
    content = bytearray((tmp_path / "it.tif").read_bytes())
    start = int.from_bytes(content[4:8], "little")
    for entry in range(
        start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12
    ):
        if int.from_bytes(content[entry : entry + 2], "little") == 338:
            content[entry : entry + 2] = (65000).to_bytes(2, "little")
    (tmp_path / "it.tif").write_bytes(content)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "it.tif")), values[..., :3])


def test_a_band_called_alpha_cannot_be_resampled(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (4, 20, 30)).astype(np.uint8)
    bands(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
    bands(
        tmp_path / "b.tif",
        values,
        grid=from_origin(500_005, 5_300_000, 0.5, 0.5),
        photometric="rgb",
        alpha="yes",
    )
    with (
        pytest.raises(ZooError, match="its alpha band has many values and is none"),
        open_pair(tmp_path / "a.tif", tmp_path / "b.tif"),
    ):
        pass


def scaled(values, low, high):
    """Independent: [3, H, W] -> uint8 [H, W, 3]."""
    shares = (values.astype(float) - low[:, None, None]) / (high - low)[:, None, None]
    return np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint32"])
def test_deep_rasters_have_one_scaling_for_both_dates(tmp_path, dtype, caplog, monkeypatch):
    monkeypatch.setattr("zoo.data.formats.rasters._said", set())
    rng = np.random.default_rng(0)
    before = rng.integers(200, 3000, (3, 50, 40)).astype(dtype)
    after = (before[:, ::-1] * 1.5).astype(dtype)
    after[1] += 500
    bands(tmp_path / "a.tif", before)
    bands(tmp_path / "b.tif", after)
    together = np.concatenate([before.reshape(3, -1), after.reshape(3, -1)], 1)
    low, high = np.percentile(together.astype(float), (2, 98), axis=1)
    with open_pair(tmp_path / "a.tif", tmp_path / "b.tif") as (first, second):
        assert np.array_equal(whole(first)[0], scaled(before, low, high))
        assert np.array_equal(whole(second)[0], scaled(after, low, high))
        assert np.abs(first.overview(50, 40).astype(int) - whole(first)[0]).max() <= 1
    assert f"{dtype} values are read as 0 to 255 from the 2nd to the 98th percentile" in caplog.text
    fixed = np.full(3, 100.0), np.full(3, 5000.0)
    with open_pair(tmp_path / "a.tif", tmp_path / "b.tif", value_range=(100, 5000)) as (first, _):
        assert np.array_equal(whole(first)[0], scaled(before, *fixed))
    bands(tmp_path / "c.tif", before.clip(0, 255).astype("uint8"))
    with (
        pytest.raises(ZooError, match=f"values of {dtype} and uint8, expected one type"),
        open_pair(tmp_path / "a.tif", tmp_path / "c.tif"),
    ):
        pass


def test_unknown_pixels_take_no_part_in_the_scaling(tmp_path):
    values = np.random.default_rng(0).uniform(10, 20, (3, 30, 30)).astype("float32")
    values[:, :10] = np.nan
    bands(tmp_path / "nan.tif", values)
    filled = np.nan_to_num(values, nan=-9999)
    bands(tmp_path / "filled.tif", filled, nodata=-9999)
    low, high = np.nanpercentile(values.reshape(3, -1).astype(float), (2, 98), axis=1)
    for name in ("nan.tif", "filled.tif"):
        with open_raster(tmp_path / name) as raster:
            pixels, known = whole(raster)
        assert np.array_equal(known, np.repeat(np.arange(30) >= 10, 30).reshape(30, 30))
        assert np.array_equal(pixels[10:], scaled(values[:, 10:], low, high))
    bands(tmp_path / "flat.tif", np.full((3, 8, 8), 700, "uint16"))
    bands(tmp_path / "none.tif", np.zeros((3, 8, 8), "uint16"), nodata=0)
    for name in ("flat.tif", "none.tif"):
        with open_raster(tmp_path / name) as raster:
            assert not whole(raster)[0].any()


@pytest.mark.slow
def test_sizes_are_compared_with_the_file(tmp_path):
    """A file of some kilobytes may say that it has any number of empty tiles."""
    size = {"count": 1, "height": 200_000, "width": 200_000, "dtype": "uint8", "sparse_ok": True}
    for name, grid in (("map.tif", {"crs": UTM, "transform": GRID}), ("plain.tif", {})):
        with rasterio.open(
            tmp_path / name,
            "w",
            "GTiff",
            tiled=True,
            blockxsize=4096,
            blockysize=4096,
            **size,
            **grid,
        ):
            pass
    with open_raster(tmp_path / "map.tif") as raster:  # read in windows, it may be what it says
        assert not raster.read(100_000, 100_000, 10, 10)[0].any()
        with pytest.raises(ZooError, match="a raster of 200000 x 200000 pixels would take 38,147"):
            whole(raster)
    with (
        pytest.raises(ZooError, match="would take 38,147 MiB"),
        open_raster(tmp_path / "plain.tif"),
    ):
        pass
    with pytest.raises(ZooError, match="would take 38,147 MiB"):
        read_mask(tmp_path / "map.tif")
    blank = np.zeros((1, 6000, 6000), np.uint8)  # more densely than DEFLATE could
    for packing in ("lzw", "zstd", "ccittfax4"):
        bits = {"nbits": 1} if packing == "ccittfax4" else {}
        bands(tmp_path / "blank.tif", blank, compress=packing, **bits)
        assert not read_mask(tmp_path / "blank.tif").any()


def test_palettes_are_colours(tmp_path):
    index = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    colours = {0: (10, 20, 30), 1: (250, 0, 5), 2: (0, 9, 200)}
    with rasterio.open(
        tmp_path / "it.tif", "w", "GTiff", count=1, height=20, width=30, dtype="uint8",
        crs=UTM, transform=GRID,
    ) as file:  # fmt: skip
        file.write(index, 1)
        file.write_colormap(1, colours)
    with open_raster(tmp_path / "it.tif") as raster:
        assert np.array_equal(whole(raster)[0], np.array([*colours.values()])[index])
        assert raster.overview(10, 15).shape == (10, 15, 3)


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
        (("a.tif", "deep.tif"), "60x80 pixels and .*4x4|values of uint16 and uint8"),
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
