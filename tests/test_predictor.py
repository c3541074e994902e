"""``zoo.load(...).predict(...)``: what ``zoo predict`` writes, whatever a picture is in."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import zoo
import zoo.predict
from tests.test_predict import rows_of
from tests.tiny import ROOT
from tests.tiny_tasks import TINY
from zoo.cli import Recipe
from zoo.errors import ZooError
from zoo.predictor import Predictor


def untrained(task: str) -> Predictor:
    recipe, overrides = TINY[task]
    return Predictor(*Recipe(ROOT / "recipes" / f"{recipe}.yaml", overrides).build(), "cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)


def test_it_answers_as_the_command(trained_run, pixels, tmp_path):
    file = tmp_path / "it.png"
    Image.fromarray(pixels).save(file)
    command = [str(file), "--checkpoint", str(trained_run), "--output", str(tmp_path / "out")]
    assert zoo.predict.main(command) == 0
    (row,) = rows_of(tmp_path / "out")
    predicted = zoo.load(trained_run).predict(file)
    assert {name: str(value) for name, value in predicted.values.items()} == row
    drawn = Image.open(tmp_path / "out" / "0001_it.png")
    np.testing.assert_array_equal(np.asarray(predicted.figure), np.asarray(drawn))


def test_a_picture_may_be_in_anything(trained_run, pixels, tmp_path):
    predictor = zoo.load(str(trained_run))
    Image.fromarray(pixels).save(tmp_path / "it.png")
    whole = predictor.predict(tmp_path / "it.png")
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    for given in (Image.fromarray(pixels), pixels, pixels / 255, tensor, tensor / 255):
        one = predictor.predict(given)
        assert one["prediction"] == whole["prediction"]
        assert one["probability"] == whole["probability"]
    grey = pixels[..., 0]
    deep = predictor.predict(grey.astype(np.uint16) * 257)
    assert deep["probability"] == pytest.approx(predictor.predict(grey)["probability"], abs=1e-3)
    assert predictor.predict(tensor[:1])["probability"] == predictor.predict(grey)["probability"]


def test_several_inputs_and_folders_give_a_list(trained_run, pixels, tmp_path):
    predictor = zoo.load(trained_run)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "2.png")
    (tmp_path / "in" / "10.png").write_bytes(b"cut")
    first, broken = predictor.predict(tmp_path / "in", output=tmp_path / "out")
    assert first["prediction"] and "10.png" in broken["error"] and broken.figure is None
    assert list(first.files.values()) == [tmp_path / "out" / "0001_2.png"]
    with pytest.raises(ZooError, match="exists already, expected the name of a new folder"):
        predictor.predict(pixels, output=tmp_path / "out")
    alone, also = predictor.predict(pixels, tmp_path / "in" / "2.png")
    assert alone["probability"] == also["probability"]


def test_what_was_written_goes_with_the_prediction(trained_run, pixels):
    predicted = zoo.load(trained_run).predict(pixels)
    (path,) = predicted.files.values()
    assert path.is_file()
    del predicted
    assert not path.exists()


def test_a_pair_is_one_input(pixels):
    predictor = untrained("BinaryChangeDetection")
    predicted = predictor.predict(pixels, Image.fromarray(pixels[::-1].copy()))
    assert 0 <= predicted["share of changed"] <= 1
    assert np.asarray(Image.open(predicted.files["_map.png"])).shape == (40, 32)


def test_sound_is_samples_with_a_rate(tmp_path):
    predictor = untrained("SpeechRecognition")
    predictor.data.prepare_data()
    predictor.data.setup("test")
    samples = np.sin(np.arange(8000) * 0.2).astype(np.float32) / 2
    soundfile.write(tmp_path / "it.wav", samples, 8000, subtype="FLOAT")
    whole = predictor.predict(tmp_path / "it.wav")
    for given in (samples, torch.from_numpy(samples)):
        assert predictor.predict((given, 8000))["transcript"] == whole["transcript"]
    with pytest.raises(ZooError, match=r"pair of samples \[T\] in -1..1 and a rate"):
        predictor.predict((samples[None], 8000))
    with pytest.raises(
        ZooError, match=r"SpeechRecognition got a picture \(ndarray\), expected the path .*\.wav"
    ):
        predictor.predict(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "no input was given"),
        ((np.zeros((4, 4, 2), np.uint8),), r"a picture of shape \[4, 4, 2\] and uint8"),
        ((torch.zeros(5, 8, 8),), r"a picture of shape \[5, 8, 8\] and torch.float32"),
        ((np.full((4, 4), 3.0),), "values outside of 0..1"),
        ((np.zeros((4, 4), np.int64),), "int64, expected"),
        ((7,), "int is no input"),
        (((np.zeros(9), 16000),), "ImageClassification got samples with a rate"),
        (("no.png",), "no.png: no such file"),
    ],
)
def test_what_is_no_input_is_said(trained_run, given, said):
    with pytest.raises(ZooError, match=said):
        zoo.load(trained_run).predict(*given)


def test_published_weights(pixels, tmp_path):
    torch.manual_seed(0)
    torch.save(zoo.create_model("efficientvmamba_tiny").state_dict(), tmp_path / "it.pth")
    weights = str(tmp_path / "it.pth")
    named = zoo.load("efficientvmamba_tiny", pretrained=weights).predict(pixels)
    assert not named["prediction"].isdigit(), "ImageNet's classes have names"
    torch.save(zoo.create_model("sinet").state_dict(), weights)
    predicted = zoo.load("dense/sinet/paper", pretrained=weights).predict(pixels)
    assert 0 <= predicted["share of person"] <= 1
    with pytest.raises(ZooError, match="nowhere does not exist, expected a run's folder"):
        zoo.load("nowhere")
