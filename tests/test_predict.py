"""``zoo predict``: any picture in, a table and annotated pictures out."""

import csv
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import zoo.predict
from tests.test_cli import error_of
from tests.tiny import ROOT
from zoo.show import progress
from zoo.tasks import ImageClassification


@pytest.fixture
def pictures(tmp_path):
    """Seven files of one digit, a zero, in all kinds of formats; some below a subfolder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    grey = np.kron(load_digits().images[0], np.ones((8, 8))).astype(np.uint8) * 15
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).resize((200, 300)).save(folder / "tall.JPG", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray((grey / 255).astype(np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(folder / "rgba.png")
    Image.fromarray(grey).convert("P").save(folder / "more" / "palette.gif")
    turned = Image.fromarray(np.rot90(grey).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise to see it upright"
    turned.save(folder / "more" / "turned.jpg", exif=exif, quality=95)
    (folder / "notes.txt").write_text("no picture, and not taken for one")
    return folder


def rows_of(folder) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_kinds_of_pictures(trained_run, pictures, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [str(pictures), "--checkpoint", str(trained_run), "--output", str(output)]
    assert zoo.predict.main(arguments) == 0
    rows = rows_of(output)
    names = [
        "deep.png",
        "float.tiff",
        "grey.png",
        "more/palette.gif",
        "more/turned.jpg",
        "rgba.png",
        "tall.JPG",
    ]
    assert [row["file"] for row in rows] == [str(pictures / name) for name in names]
    scores = {name: float(row["probability"]) for name, row in zip(names, rows, strict=True)}
    same = [rows[names.index(n)]["prediction"] for n in names if n != "tall.JPG"]
    assert len(set(same)) == 1, "one picture in several formats is one picture"
    for name in ("deep.png", "float.tiff", "rgba.png", "more/palette.gif"):
        assert scores[name] == pytest.approx(scores["grey.png"], abs=0.01)
    assert scores["more/turned.jpg"] == pytest.approx(scores["grey.png"], abs=0.05)
    drawn = sorted(output.glob("*.png"))
    assert len(drawn) == len(rows)
    assert all(min(Image.open(path).size) > 100 for path in drawn)
    assert "7 file(s)" in capsys.readouterr().out

    assert "exists already" in error_of(capsys, zoo.predict.main(arguments))


BROKEN = [b"this is text, not a picture\n", b"", b"\x89PNG\r\n\x1a\n cut"]


def test_a_broken_picture_is_a_row_with_its_error(trained_run, pictures, tmp_path, capsys):
    for number, content in enumerate(BROKEN):
        (pictures / f"broken{number}.png").write_bytes(content)
    output = tmp_path / "out"
    arguments = [str(pictures), "--checkpoint", str(trained_run), "--output", str(output)]
    assert zoo.predict.main(arguments) == 1
    assert capsys.readouterr().err == "error: 3 of 10 failed, see the column error\n"
    rows = {row["file"].removeprefix(f"{pictures}/"): row for row in rows_of(output)}
    for name, row in rows.items():
        if name.startswith("broken"):
            assert name in row["error"] and "expected a picture such as PNG" in row["error"]
            assert row["prediction"] == ""
        else:
            assert row["error"] == "" and row["prediction"]
    drawn = sorted(path.name.partition("_")[2] for path in output.glob("*.png"))
    assert drawn == sorted(f"{Path(n).stem}.png" for n in rows if not n.startswith("broken"))
    assert {path.name for path in output.parent.iterdir()} == {"pictures", "out"}


def test_if_nothing_can_be_predicted_nothing_is_left(trained_run, tmp_path, capsys):
    source = tmp_path / "text.png"
    source.write_bytes(BROKEN[0])
    arguments = [str(source), "--checkpoint", str(trained_run), "--output", str(tmp_path / "out")]
    line = error_of(capsys, zoo.predict.main(arguments))
    assert "text.png" in line and "expected a picture such as PNG or JPEG" in line
    assert list(tmp_path.iterdir()) == [source]
    arguments.insert(0, str(source))
    line = error_of(capsys, zoo.predict.main(arguments))
    assert line.startswith("error: all 2 inputs failed, the first: ")
    assert list(tmp_path.iterdir()) == [source]


def test_an_output_folder_is_nobody_elses(trained_run, pictures, tmp_path, monkeypatch):
    """Two predictions that end at the same time, and what a killed one has left."""
    stale = tmp_path / f".old.{platform.node().partition('.')[0]}-999999999.0.part"
    stale.mkdir()
    output = tmp_path / "out"
    predict_one = ImageClassification.predict_one

    def slowly(*args):
        output.mkdir(exist_ok=True)
        (output / "theirs").touch()
        return predict_one(*args)

    monkeypatch.setattr(ImageClassification, "predict_one", slowly)
    picture = str(pictures / "grey.png")
    arguments = [picture, "--checkpoint", str(trained_run), "--output", str(output)]
    assert zoo.predict.main(arguments) == 0
    assert [path.name for path in output.iterdir()] == ["theirs"]
    assert len(rows_of(tmp_path / "out-2")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "out", "out-2"}


def test_wrong_arguments_are_one_line(trained_run, tmp_path, capsys, in_tmp_path):
    (tmp_path / "empty").mkdir()
    checkpoint = ["--checkpoint", str(trained_run)]
    for arguments, expected in (
        (["empty", *checkpoint], "empty holds no files to predict, expected files ending in .bmp"),
        (["no.png", *checkpoint], "no.png: no such file, expected a picture"),
        (["empty"], "which model? give --checkpoint RUN, or --model NAME --pretrained FILE, or"),
        (["empty", "--checkpoint", "nowhere"], "nowhere does not exist, expected a run's folder"),
        (["empty", "--checkpoint", "empty"], "empty has no checkpoints/best.ckpt"),
        (["empty", "--recipe", "r.yaml"], "--recipe r.yaml: its weights are missing"),
        (["empty", "--model", "vmamba_tiny"], "its weights are missing, add --pretrained FILE"),
    ):
        assert expected in error_of(capsys, zoo.predict.main(arguments))


def test_published_weights_by_model_name(pictures, tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    model = zoo.create_model("efficientvmamba_tiny")
    save_file(model.state_dict(), weights)
    arguments = f"{pictures}/grey.png --model efficientvmamba_tiny --pretrained {weights}"
    assert zoo.predict.main([*arguments.split(), "--output", str(tmp_path / "out")]) == 0
    (row,) = rows_of(tmp_path / "out")
    assert not row["prediction"].isdigit(), "ImageNet's classes have names"


def test_published_weights_by_recipe(pictures, tmp_path):
    weights = tmp_path / "SINet.pth"
    torch.manual_seed(0)
    torch.save(zoo.create_model("sinet").state_dict(), weights)
    recipe = ROOT / "recipes" / "dense" / "sinet" / "paper.yaml"
    arguments = f"{pictures}/tall.JPG --recipe {recipe} --pretrained {weights}"
    assert zoo.predict.main([*arguments.split(), "--output", str(tmp_path / "out")]) == 0
    (row,) = rows_of(tmp_path / "out")
    assert {"share of background", "share of person"} <= set(row)
    assert Image.open(tmp_path / "out" / "0001_tall_result.png").size == (200, 300)


def test_device_that_is_not_here(trained_run, pictures, capsys):
    arguments = [str(pictures), "--checkpoint", str(trained_run), "--device", "gpu"]
    assert "--device gpu cannot be used" in error_of(capsys, zoo.predict.main(arguments))


def test_a_bar_is_for_terminals(monkeypatch, capsys):
    items = ["a", "b", "c"]
    assert progress(items, "predict") is items  # a log gets no bar
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert progress(items[:1], "predict") == ["a"]
    assert list(progress(items, "predict")) == items
    shown = capsys.readouterr()
    assert "predict" in shown.err and not shown.out
