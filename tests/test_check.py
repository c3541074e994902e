"""``zoo check``: what there is, what is odd, a picture; nothing is trained."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo.check
from tests.test_cli import error_of
from tests.tiny import tiny_recipe
from tests.tiny_tasks import TINY
from zoo.data import ImageFolder
from zoo.data.look import Part, look, parts_of, shared


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Two classes; one picture stands in two splits, one is black."""
    root = tmp_path_factory.mktemp("flowers")
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (16, 20, 3), np.uint8)
                if (split, name, number) == ("train", "b", 1):
                    pixels[:] = 0
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    twin = root / "train" / "a" / "0.png"
    (root / "test" / "a" / "2.png").write_bytes(twin.read_bytes())
    return root


def test_what_is_odd_is_said(flowers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(
        tmp_path,
        model__init_args__num_classes=2,
        data__class_path="zoo.data.ImageFolder",
        data__init_args__root=str(flowers),
    )
    assert zoo.check.main([str(recipe), "--output", "seen"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "train: 1 of 6 samples looked at have a part that is one value throughout, such as",
        "val: 6 samples are few to judge by",
        "1 samples looked at stand in both train and test, such as 0 and 2",
        "go on with: zoo train",
        "a 50.0%, b 50.0%",
    ):
        assert line in said
    assert min(Image.open("seen/samples.png").size) > 200
    assert {path.name for path in tmp_path.iterdir()} == {"seen", "recipes"}
    assert "exists already" in error_of(capsys, zoo.check.main([str(recipe), "--output", "seen"]))


@pytest.mark.parametrize("task", ["Segmentation", "LanguageModeling", "SpeechRecognition"])
def test_other_tasks(task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, overrides = TINY[task]
    assert zoo.check.main([recipe, "--samples", "3", "--output", "seen", *overrides]) == 0
    said = capsys.readouterr().out
    assert "a step of" in said and "train" in said
    assert (tmp_path / "seen" / "samples.png").is_file() == (task != "LanguageModeling")


def test_wrong_arguments_are_one_line(capsys, in_tmp_path):
    for arguments, expected in (
        ([], "which recipe? it comes first"),
        (["nothing"], "nothing does not exist, expected a recipe"),
        (["vision/vmamba/small", "--samples", "0"], "--samples is 0, expected 1 or more"),
        (["vision/vmamba/small", "--wrong.key", "1"], "--wrong.key: no such key"),
    ):
        assert expected in error_of(capsys, zoo.check.main(arguments))


def test_parts_of_a_sample():
    sample = {"image": torch.zeros(3, 4), "boxes": [torch.ones(2), 7], "name": "no number"}
    assert [name for name, _ in parts_of(sample)] == ["image", "boxes[0]", "boxes[1]"]
    assert [name for name, _ in parts_of((torch.zeros(2), 1))] == ["input", "target"]
    part = Part()
    for size in (4, 9):
        part.add(torch.arange(size).view(1, size))
    assert part.shape == "1 x 4..9" and part.counts[3] == 2 and part.counts[8] == 1
    assert (part.least, part.most) == (0, 8)
    part.add(torch.zeros(2, 2, 2))
    assert part.shape == "of several shapes"


def test_splits_that_lack_a_class_or_serve_twice(flowers):
    data = ImageFolder(str(flowers), image_size=16)
    data.setup("test")
    data._sources["val"] = [data.source("test")[0]] * 2
    assert "val: no sample of b" in look(data, "val", 2).odd
    seen = look(data, "test", 2)
    assert seen.seen == 2 and seen.size == 6
    assert shared({"val": seen, "test": seen}) == [
        "val and test are the same samples, as far as looked at"
    ]
