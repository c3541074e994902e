import csv
import json

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

import zoo.predict
from tests.test_cli import error_of
from tests.tiny import ROOT
from zoo.data.change.change import SECOND, XBD, LEVIRCDPlus
from zoo.data.dense.portraits import Portraits
from zoo.data.formats.map_files import write_geotiff
from zoo.data.synthetic.change_scenes import draw_scene
from zoo.errors import ZooError
from zoo.tasks.change.change_detection import (
    BinaryChangeDetection,
    DamageAssessment,
    SemanticChangeDetection,
)

RECIPES = ROOT / "recipes" / "change" / "changemamba"
NETWORK = {"dims": 8, "depths": (1, 1, 1, 1), "decoder_width": 8, "drop_path_rate": 0.0}
KINDS = {
    BinaryChangeDetection: ("mambabcd_tiny", LEVIRCDPlus),
    SemanticChangeDetection: ("mambascd_tiny", SECOND),
    DamageAssessment: ("mambabda_tiny", XBD),
}
GRID = from_origin(500_000, 5_300_000, 0.5, 0.5)


def task_of(kind, **kwargs):
    torch.manual_seed(0)
    return kind(model=KINDS[kind][0], model_args=NETWORK, **kwargs).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_data_must_fit_the_task(kind):
    task = task_of(kind)
    for data in (LEVIRCDPlus, SECOND, XBD):
        if data is KINDS[kind][1] or (kind is BinaryChangeDetection and data is SECOND):
            task.check_data(data("nowhere"))
        else:
            with pytest.raises(
                ZooError, match=f"{data.__name__} has no labels of .*, which {kind.__name__} learns"
            ):
                task.check_data(data("nowhere"))
    with pytest.raises(ZooError, match="Portraits has no pairs of pictures, expected"):
        task.check_data(Portraits("nowhere"))


def test_from_to_classes():
    task = task_of(SemanticChangeDetection)
    change, before, after = torch.zeros(3, 1, 7, 1, 3)
    change = change[:, :2]
    change[0, 1, 0] = torch.tensor([1.0, 1.0, -1.0])
    before[0, 5, 0, :2] = after[0, 2, 0, :2] = 1.0  # from building to bare ground
    before[0, 0] = after[0, 0] = 9.0  # class 0 is not asked
    assert task.labels((change, before, after)).tolist() == [[[26, 26, 0]]]
    assert task.names[26] == "building to bare ground"
    batch = {
        "change": torch.tensor([[[1, 1, 0]]]),
        "cover_pre": torch.tensor([[[5, 0, 5]]]),
        "cover_post": torch.tensor([[[2, 2, 2]]]),
    }
    assert task.truth(batch).tolist() == [[[26, -1, 0]]]


def test_semantic_loss_wants_one_opinion_where_nothing_changed():
    task = task_of(SemanticChangeDetection)
    torch.manual_seed(0)
    cover_pre = torch.randint(1, 7, (1, 4, 4))
    cover_pre[:, :2] = 0
    batch = {"change": (cover_pre > 0).long(), "cover_pre": cover_pre, "cover_post": cover_pre}
    change, cover = torch.randn(1, 2, 4, 4), torch.randn(1, 7, 4, 4)
    alike = task.loss((change, cover, cover), batch)
    other = cover.clone()
    other[:, :, :2] = torch.randn(1, 7, 2, 4)
    expected = (cover.softmax(1) - other.softmax(1)).square().mean() * 0.25
    torch.testing.assert_close(task.loss((change, cover, other), batch) - alike, expected)


def test_damage_is_seen_in_found_buildings_alone():
    task = task_of(DamageAssessment)
    building, damage = torch.zeros(1, 2, 1, 2), torch.zeros(1, 5, 1, 2)
    building[0, 1, 0, 0] = building[0, 0, 0, 1] = 1.0
    damage[0, 3] = 1.0
    assert task.labels((building, damage)).tolist() == [[[3, 0]]]
    empty = {"building": torch.zeros(1, 1, 2).long(), "damage": torch.full((1, 1, 2), 255)}
    assert task.loss((building, damage), empty).isfinite()


def write_pair(folder, size=96, crs="EPSG:32632"):
    scene = draw_scene(np.random.default_rng(0), size)
    for name, pixels in (("before", scene.pre), ("after", scene.post)):
        write_geotiff(folder / f"{name}.tif", pixels, crs, GRID if crs else None)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return scene


def test_pairs_are_found(tmp_path):
    task = task_of(BinaryChangeDetection)
    for date in ("A", "B"):
        (tmp_path / date).mkdir()
        for name in ("x.png", "y.png"):
            Image.new("RGB", (4, 4)).save(tmp_path / date / name)
    a, b = tmp_path / "A", tmp_path / "B"
    assert task.find_inputs([a / "x.png", b / "y.png"]) == [(a / "x.png", b / "y.png")]
    pairs = [(a / name, b / name) for name in ("x.png", "y.png")]
    assert task.find_inputs([a, b]) == task.find_inputs([tmp_path]) == pairs
    for sources in ([a], [a / "x.png"], [a, b / "x.png"], [a, b, a]):
        with pytest.raises(ZooError, match="give two pictures, before and after; two folders"):
            task.find_inputs(sources)
    Image.new("RGB", (4, 4)).save(a / "x.tif")
    with pytest.raises(ZooError, match="have one name, expected one of each"):
        task.find_inputs([a, b])
    (a / "x.tif").unlink()
    (b / "y.png").unlink()
    with pytest.raises(ZooError, match="1 stand in one of them only, such as 'y'"):
        task.find_inputs([a, b])


@pytest.mark.parametrize("kind", KINDS)
def test_a_georeferenced_pair_gives_map_areas_and_pictures(kind, tmp_path):
    write_pair(tmp_path)
    task, data = task_of(kind), KINDS[kind][1]("nowhere")
    (row,) = task.predict_files([(tmp_path / "before.tif", tmp_path / "after.tif")], data, tmp_path)
    with rasterio.open(tmp_path / "0001_before_map.tif") as result:
        labels = result.read(1)
        assert result.crs == "EPSG:32632" and result.transform == GRID
    inputs = []
    for name in ("before", "after"):
        pixels = np.array(Image.open(tmp_path / f"{name}.png"))
        inputs.append(data.to_input(torch.from_numpy(pixels).movedim(-1, 0))[None])
    assert np.array_equal(labels, task(*inputs)[0].numpy())
    areas = json.loads((tmp_path / "0001_before_map.geojson").read_text())["features"]
    assert len(areas) == row["areas"]
    assert sum(area["properties"]["pixels"] for area in areas) == (labels > 0).sum()
    for name in ("0001_before.png", "0001_before_overlay.png"):
        assert min(Image.open(tmp_path / name).size) >= 90


def test_tiles_overlap_and_cover_the_picture(tmp_path):
    write_pair(tmp_path, 150)
    data = LEVIRCDPlus("nowhere")
    files = [(tmp_path / "before.png", tmp_path / "after.png")]
    maps, seen = [], []
    for number, tile in enumerate((160, 64)):
        task = task_of(BinaryChangeDetection, tile=tile, overlap=32)
        task.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
        (tmp_path / str(number)).mkdir()
        (row,) = task.predict_files(files, data, tmp_path / str(number))
        maps.append(np.asarray(Image.open(tmp_path / str(number) / "0001_before_map.png")))
        assert row["areas"] == "" and set(np.unique(maps[-1])) <= {0, 1}
    assert seen[0] == (150, 150) and set(seen[1:]) == {(64, 64)} and len(seen) == 1 + 16
    with pytest.raises(ZooError, match="overlap is 64, expected 0 to less than tile, 64"):
        task_of(BinaryChangeDetection, tile=64, overlap=64)


def test_what_no_picture_shows_is_not_known(tmp_path):
    write_pair(tmp_path)
    with rasterio.open(tmp_path / "after.tif", "r+") as after:
        after.nodata = 0
        after.write(np.zeros((3, 96, 10), np.uint8), window=rasterio.windows.Window(0, 0, 10, 96))
    task = task_of(BinaryChangeDetection)
    task.predict_files(
        [(tmp_path / "before.tif", tmp_path / "after.tif")], LEVIRCDPlus("nowhere"), tmp_path
    )
    with rasterio.open(tmp_path / "0001_before_map.tif") as result:
        labels = result.read(1)
        assert (labels[:, :10] == 255).all() and (labels[:, 10:] < 255).mean() > 0.99


def test_from_training_to_a_map_as_a_user(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pair(tmp_path)
    arguments = [
        str(RECIPES / "small.yaml"),
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--data.init_args.sample={train: 16, val: 0, test: 4, size: 32}",
        "--data.init_args.crop=32",
        "--model.init_args.model_args={dims: 8, depths: [1, 1, 1, 1], decoder_width: 8}",
    ]
    assert zoo.train.main(arguments) == 0
    (run,) = (tmp_path / "runs").glob("*/*/*/*")
    assert (run / "figures" / "examples.png").is_file() or list(run.rglob("examples.png"))
    output = tmp_path / "out"
    checkpoint = ["--checkpoint", str(run), "--output", str(output)]
    assert "give two pictures" in error_of(capsys, zoo.predict.main(["before.tif", *checkpoint]))
    assert zoo.predict.main(["before.tif", "after.tif", *checkpoint]) == 0
    (row,) = csv.DictReader((output / "predictions.csv").open())
    assert row["before"] == "before.tif" and 0 <= float(row["share of changed"]) <= 1
    assert {path.name for path in output.iterdir()} == {
        "predictions.csv",
        "0001_before.png",
        "0001_before_map.geojson",
        "0001_before_map.tif",
        "0001_before_overlay.png",
    }
