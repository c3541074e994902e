"""``zoo new``: from files as people have them to a recipe that trains."""

import csv

import numpy as np
import pytest
import soundfile
from PIL import Image

import zoo.new
import zoo.train
from tests.test_cli import error_of
from zoo.arguments import load_yaml
from zoo.data import LEVIRCDPlus, MOTChallenge, NiftiVolumes, PictureMasks
from zoo.data.formats.maps import SmallSample
from zoo.data.tracking.tracks import SmallScenes

SMALL = SmallSample(train=24, val=4, test=4, size=64)


def flowers(root):
    for name in ("rose", "tulip"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")


def calls(root):
    root.mkdir()
    with (root / "calls.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "transcript"])
        for number in range(12):
            sound = np.random.default_rng(number).normal(size=8000) / 20
            soundfile.write(root / f"{number}.wav", sound, 8000)
            writer.writerow([f"{number}.wav", "Größe zwölf"])


def made(kind, **settings):
    def make(root):
        kind(str(root), **settings).make(root, SMALL)

    return make


def clips(root):
    MOTChallenge(str(root)).make(root, SmallScenes(train=2, val=2, test=2, frames=16))


def book(root):
    root.mkdir()
    (root / "book.txt").write_text("A sentence of some words, again and again. \n" * 4000)


JOBS = {
    "classification": (flowers, "", {"model.num_classes": 2, "data.image_size": 32}),
    "segmentation": (made(PictureMasks), "", {"model.num_classes": 3, "data.image_size": 64}),
    "change": (made(LEVIRCDPlus), "", {"data.crop": 64}),
    "speech": (calls, "calls.csv", {"data.alphabet": " 'abcdefghijklmnopqrstuvwxyzßö"}),
    "tracking": (clips, "", {"data.val": "val"}),
    "language": (book, "book.txt", {"data.length": 128}),
}


@pytest.mark.parametrize("task", JOBS)
def test_a_job_in_two_commands(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, file, expected = JOBS[task]
    make(tmp_path / "mine")
    data = str(tmp_path / "mine" / file) if file else "mine"
    assert zoo.new.main([task, data]) == 0
    said = capsys.readouterr().out
    name = "mine.yaml" if not file else f"{file.partition('.')[0]}.yaml"
    assert f"{name} is written" in said and "a step of" in said and "go on with: zoo train" in said
    recipe = load_yaml((tmp_path / name).read_text())
    for key, value in expected.items():
        group, _, key = key.partition(".")
        assert recipe[group]["init_args"][key] == value
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    assert zoo.train.main([name, *short, "--trainer.limit_val_batches=1"]) == 0


def test_volumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    NiftiVolumes("v").make(tmp_path / "v", SmallSample(train=6, val=2, test=2, size=32))
    assert zoo.new.main(["segmentation", "v"]) == 0
    model = load_yaml((tmp_path / "v.yaml").read_text())["model"]["init_args"]
    assert model["model"] == "wau_unet" and model["model_args"]["in_chans"] >= 1


def test_weights_to_start_from_make_the_published_size(tmp_path):
    flowers(tmp_path / "mine")
    small = zoo.new.classification(tmp_path / "mine", None)
    tuned = zoo.new.classification(tmp_path / "mine", "hf://owner/name")
    model = tuned["model"]["init_args"]
    assert model["pretrained"] == "hf://owner/name" and "model_args" not in model
    assert model["optimizer"]["lr"] < small["model"]["init_args"]["optimizer"]["lr"] / 2
    assert tuned["data"]["init_args"]["image_size"] == 224


def test_wrong_arguments_are_one_line(capsys, in_tmp_path):
    (in_tmp_path / "empty").mkdir()
    (in_tmp_path / "there.yaml").touch()
    for arguments, expected in (
        (["segmentasion", "empty"], "there is no task 'segmentasion'; did you mean segmentation"),
        (["change", "nothing"], "nothing does not exist, expected a folder or file of data"),
        (["change", "empty", "--output", "x.txt"], "--output: x.txt must end in .yaml"),
        (["change", "empty", "--output", "there.yaml"], "there.yaml exists already: name another"),
        (["segmentation", "empty"], "empty has none of the folders images, image"),
    ):
        assert expected in error_of(capsys, zoo.new.main(arguments))
    assert sorted(path.name for path in in_tmp_path.iterdir()) == ["empty", "there.yaml"]
