import json

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from zoo.data.change.change import SECOND, SECOND_COLOURS, SYSUCD, WHUCD, XBD, LEVIRCDPlus
from zoo.data.formats.crops import crop_place
from zoo.data.formats.maps import SmallSample, write_image
from zoo.data.synthetic.change_scenes import BUILDING, draw_scene
from zoo.errors import ZooError

SAMPLE = SmallSample(train=8, val=4, test=4, size=32)
SETS = {
    SYSUCD: "train/time1/00007.png",
    LEVIRCDPlus: "test/label/00003.png",
    WHUCD: "1. The two-period image data/change label/change_label.tif",
    SECOND: "train/label1/00000.png",
    XBD: "test/targets/made-disaster_00003_post_disaster_target.png",
}


def of(kind, root, **kwargs):
    more = {"tile": 32} if kind is WHUCD else {}
    return kind(str(root), crop=32, batch_size=4, **more, **kwargs)


@pytest.mark.parametrize(("kind", "file"), SETS.items())
def test_made_data_have_the_published_layout(kind, file, tmp_path):
    data = of(kind, tmp_path / "data", sample=SAMPLE)
    data.setup("fit")
    data.setup("test")
    assert (tmp_path / "data" / file).is_file()
    assert len(data.source("train")) >= 8 and len(data.source("test")) >= 4
    batch = next(iter(data.train_dataloader()))
    assert batch["pre"].shape == batch["post"].shape == (4, 3, 32, 32)
    whole = next(iter(data.test_dataloader()))
    for name in data.labels:
        assert batch[name].shape == (4, 32, 32) and batch[name].dtype == torch.int64
        assert whole[name].max() > 0
    shown = data.to_display(whole["pre"][0])
    stored = data.source("test")[0]["pre"].permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - stored).max() <= 1
    again = of(kind, tmp_path / "data")  # read, not made
    again.setup("fit")
    assert len(again.source("train")) == len(data.source("train"))


def test_scenes_change_where_they_say():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 48) for _ in range(8)]
    for scene in scenes:
        stands = [cover == BUILDING for cover in (scene.cover_pre, scene.cover_post)]
        assert np.array_equal(scene.building_change, stands[0] != stands[1])
        assert not (scene.building_change & ~scene.change).any()
    assert any(scene.building_change.any() for scene in scenes)
    damaged = [draw_scene(rng, 48, damage=True) for _ in range(8)]
    assert not any(scene.change.any() for scene in damaged)
    assert set(np.unique(np.concatenate([s.damage for s in damaged]))) == {0, 1, 2, 3, 4}


def test_plain_differencing_fails_on_the_scenes():
    """No threshold of the difference finds the changed buildings."""
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng, 64) for _ in range(30)]
    difference = np.stack([np.abs(s.pre.astype(float) - s.post).mean(-1) for s in scenes])
    truth = np.stack([s.building_change for s in scenes])
    best = 0.0
    for threshold in range(10, 150, 10):
        mine = difference > threshold
        best = max(best, 2 * (mine & truth).sum() / (mine.sum() + truth.sum()))
    assert best < 0.4


def copy_as(folder, layers):
    for place, pixels in layers.items():
        write_image(folder / place, pixels)


def test_the_authors_arrangement_and_lists(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a", "b", "c"]):
        pixels = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        change = np.full((40, 40), 255 * (number % 2), np.uint8)
        layers = {f"T1/{name}.png": pixels, f"T2/{name}.png": pixels, f"GT/{name}.png": change}
        copy_as(tmp_path / "train", layers)
        copy_as(tmp_path / "test", layers)
    (tmp_path / "train.txt").write_text("b.png\n")  # WHU's and LEVIR's lists have the ending
    (tmp_path / "test_list.txt").write_text("c\na\n")
    for kind in (SYSUCD, LEVIRCDPlus, WHUCD):
        data = kind(str(tmp_path))
        assert [[path.stem for path in data.files(split)[0]] for split in ("train", "val")] == [
            ["b"] * 3,
            ["c"] * 3,
        ]
        assert data.source("train")[0]["change"].min() == 1


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("endings", [("png",) * 3, ("tif", "tif", "png"), ("jpg", "tif", "tif")])
def test_pairs_of_any_ending_and_labels_of_any_value(tmp_path, value, endings):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    changed = np.zeros((20, 20), bool)
    changed[3:9, 4:14] = True
    label = changed.astype(np.uint8) * value
    for split in ("train", "test"):
        for folder, layer, ending in zip(
            ("A", "B", "OUT"), (pixels, pixels, label), endings, strict=True
        ):
            (tmp_path / split / folder).mkdir(parents=True)
            for name in ("2", "10"):
                Image.fromarray(layer).save(tmp_path / split / folder / f"{name}.{ending}")
    data = LEVIRCDPlus(str(tmp_path), crop=20)
    assert [path[0].stem for path in data.files("train")] == ["2", "10"]
    sample = data.source("val")[0]
    assert np.array_equal(sample["change"], changed)
    if endings[1] != "jpg":
        assert np.array_equal(sample["post"], pixels.transpose(2, 0, 1))
    (tmp_path / "train" / "OUT" / f"2.{endings[2]}").unlink()
    with pytest.raises(ZooError, match="OUT lacks 1 of the 2 pictures of"):
        data.files("train")


def test_a_pair_is_read_by_one_scaling(tmp_path):
    """Values of 16 bits, as satellites have them, with pixels of which nothing is known."""
    values = np.random.default_rng(0).integers(500, 3000, (4, 20, 20)).astype(np.uint16)
    values[:, :2] = 0
    for split in ("train", "test"):
        for folder in ("A", "B"):
            (tmp_path / split / folder).mkdir(parents=True)
            size = {"count": 4, "height": 20, "width": 20, "dtype": "uint16", "nodata": 0}
            with rasterio.open(
                tmp_path / split / folder / "x.tif",
                "w",
                "GTiff",
                crs="EPSG:32632",
                transform=from_origin(0, 0, 1, 1),
                **size,
            ) as file:
                file.write(values if folder == "A" else values // 2)
        write_image(tmp_path / split / "label" / "x.png", np.eye(20, dtype=np.uint8))
    data = LEVIRCDPlus(str(tmp_path), crop=20, bands=(4, 1, 2), value_range=(0, 4000))
    sample = data.source("train")[0]
    for name, layer in (("pre", values), ("post", values // 2)):
        wanted = np.round(layer[[3, 0, 1]] / 4000 * 255)
        assert np.array_equal(sample[name], wanted)
    change = np.eye(20, dtype=int)
    change[:2] = 255
    assert np.array_equal(sample["change"], change)
    with pytest.raises(ZooError, match="value_range is"):
        LEVIRCDPlus(str(tmp_path), value_range=(5, 5))


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train", "val", "test"], (10, 10, 10)),
        (["train", "test"], (10, 10, 10)),
        (["train", "val"], (10, 10, 10)),
        (["train"], (8, 1, 1)),
    ],
)
def test_splits_without_a_folder(tmp_path, folders, parts, caplog):
    pixels = np.zeros((4, 4, 3), np.uint8)
    for split in folders:
        for number in range(10):
            copy_as(tmp_path / split, {f"{f}/{number}.png": pixels for f in ("A", "B", "label")})
    files = [LEVIRCDPlus(str(tmp_path)).files(split) for split in ("train", "val", "test")]
    assert tuple(map(len, files)) == parts
    train, val, test = ({paths[0] for paths in part} for part in files)
    assert not train & val and not train & test and (val == test) == (len(folders) == 2)
    assert [LEVIRCDPlus(str(tmp_path)).files(s) for s in ("train", "val", "test")] == files
    said = {1: "has the folder train alone", 2: "has no folder", 3: ""}[len(folders)]
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_second_with_a_palette(tmp_path):
    """Its colours count where they are the published ones, else its indices."""
    index = np.random.default_rng(0).integers(0, 7, (20, 20)).astype(np.uint8)
    picture = np.zeros((20, 20, 3), np.uint8)
    order = [3, 0, 6, 1, 5, 2, 4]
    for number, (palette, wanted) in enumerate(
        (
            ([SECOND_COLOURS[i] for i in order], np.array(order)[index]),
            ([(i, i, i) for i in range(7)], index),
        )
    ):
        root = tmp_path / str(number)
        copy_as(root / "train", {"im1/x.png": picture, "im2/x.png": picture})
        for folder in ("label1", "label2"):
            (root / "train" / folder).mkdir()
            label = Image.fromarray(index)
            label.putpalette([value for colour in palette for value in colour])
            label.save(root / "train" / folder / "x.png")
        for name in ("y", "z"):
            for folder in ("im1", "im2", "label1", "label2"):
                source = root / "train" / folder / "x.png"
                source.with_stem(name).write_bytes(source.read_bytes())
        sample = SECOND(str(root)).source("train")[0]
        assert np.array_equal(sample["cover_pre"], wanted)


def test_second_as_indices_equals_second_in_colours(tmp_path):
    rng = np.random.default_rng(0)
    cover = rng.integers(0, 7, (2, 20, 20)).astype(np.uint8)
    cover[:, :10] = 0
    picture = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
    colours = np.array(SECOND_COLOURS, np.uint8)
    published = {"im1/x.png": picture, "im2/x.png": picture}
    authors = {"T1/x.png": picture, "T2/x.png": picture}
    for date in (0, 1):
        cover[date, 10:][cover[date, 10:] == 0] = 1
        published[f"label{date + 1}/x.png"] = colours[cover[date]]
        authors[f"GT_T{date + 1}/x.png"] = cover[date]
    authors["GT_CD/x.png"] = (cover[0] > 0).astype(np.uint8) * 255
    samples = []
    for name, layers in (("published", published), ("authors", authors)):
        copy_as(tmp_path / name / "train", layers)
        copy_as(tmp_path / name / "test", layers)
        samples.append(SECOND(str(tmp_path / name)).source("train")[0])
    for key in samples[0]:
        assert torch.equal(samples[0][key], samples[1][key]), key

    copy_as(tmp_path / "published" / "test", {"label1/x.png": np.full((20, 20, 3), 7, np.uint8)})
    with pytest.raises(ZooError, match=r"label1/x.png: colours that are none of SECOND's"):
        SECOND(str(tmp_path / "published")).source("test")[0]


def test_xbd_with_masks_of_three_channels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
    damage = rng.integers(0, 5, (20, 20)).astype(np.uint8)
    layers = {}
    for date, mask in (("pre", damage > 0), ("post", damage)):
        layers[f"images/x_1_{date}_disaster.png"] = pixels
        layers[f"masks/x_1_{date}_disaster.png"] = np.dstack([mask.astype(np.uint8)] * 3)
    copy_as(tmp_path / "train", layers)
    copy_as(tmp_path / "test", layers)
    data = XBD(str(tmp_path), crop=16)
    sample = data.source("test")[0]
    assert np.array_equal(sample["damage"], damage) and np.array_equal(
        sample["building"], damage > 0
    )
    batch = data.train_transform(data.source("train")[0])
    assert batch["damage"].min() >= 1  # the background's damage is not known
    assert data.eval_transform(sample)["damage"].min() == 0


def test_a_damage_that_is_none(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    layers = {f"images/x_{date}_disaster.png": pixels for date in ("pre", "post")}
    layers["masks/x_pre_disaster.png"] = np.full((20, 20), 255, np.uint8)
    layers["masks/x_post_disaster.png"] = np.full((20, 20), 7, np.uint8)
    copy_as(tmp_path / "train", layers)
    copy_as(tmp_path / "test", layers)
    with pytest.raises(ZooError, match="a damage of 7, expected 0 to 4"):
        XBD(str(tmp_path)).source("test")[0]
    (tmp_path / "test" / "masks" / "x_post_disaster.png").unlink()
    with pytest.raises(ZooError, match="masks lacks x_post_disaster"):
        XBD(str(tmp_path)).source("test")


def test_small_pictures_are_framed(tmp_path):
    data = of(SYSUCD, tmp_path / "data", sample=SAMPLE)
    data.crop = 48
    batch = data.train_transform(data.source("train")[0])
    assert batch["pre"].shape == (3, 48, 48)
    frame = batch["change"] == 255
    assert int(frame.sum()) == 48**2 - 32**2
    black = data.to_input(torch.zeros(3, 1, 1, dtype=torch.uint8))
    assert torch.equal(batch["pre"][:, frame], black[:, 0].expand(3, int(frame.sum())))


def test_pair_and_labels_are_turned_together(tmp_path):
    data = of(SYSUCD, tmp_path / "data", sample=SAMPLE)
    ramp = torch.arange(32 * 32).view(1, 32, 32) % 251
    image = ramp.repeat(3, 1, 1).to(torch.uint8)
    sample = {"pre": image, "post": image, "change": ramp[0].to(torch.uint8)}
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        batch = data.train_transform(sample)
        red = data.to_display(batch["pre"])[..., 0]
        assert np.array_equal(red, batch["change"].numpy())
        assert torch.equal(batch["pre"], batch["post"])
        seen.add(batch["change"].numpy().tobytes())
    assert len(seen) > 4


def test_crops_avoid_places_of_one_class():
    torch.manual_seed(0)
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:24, :24] = 1
    places = [crop_place(labels, (16, 16)) for _ in range(40)]
    good = sum((labels[t : t + 16, x : x + 16] == 1).sum() / 16 >= 4 for t, x in places)
    plain = [crop_place(labels, (16, 16), most=2) for _ in range(40)]
    assert good > sum((labels[t : t + 16, x : x + 16] == 1).sum() / 16 >= 4 for t, x in plain) + 8
    assert crop_place(torch.full((8, 8), 255), (8, 8)) == (0, 0)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ZooError, match=r"time1,time2,label"):
        SYSUCD(str(tmp_path / "nowhere")).source("train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ZooError, match="holds no pairs, expected"):
        LEVIRCDPlus(str(tmp_path)).source("train")
    with pytest.raises(ZooError, match="turn is 'often', expected always, any or never"):
        XBD("x", turn="often")
    data = of(SYSUCD, tmp_path / "data", sample=SAMPLE)
    data.source("train")
    label = tmp_path / "data" / "test" / "label" / "00000.png"
    Image.new("L", (30, 30)).save(label)
    with pytest.raises(ZooError, match="32 x 32 pixels and its labels of change 30 x 30"):
        data.source("test")[0]
    assert json.loads((tmp_path / "data" / "sample.json").read_text())["size"] == 32
