"""The page of a trained model, asked as a browser asks it."""

import gradio
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.test_predictor import untrained
from zoo.demo import page
from zoo.errors import ZooError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "it.png"
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(path)
    return path


def predict_of(blocks):
    (function,) = blocks.fns.values()
    return function.fn


def test_a_picture_gives_figure_values_and_files(picture):
    predictor = untrained("Segmentation")
    figure, values, files = predict_of(page(predictor, "a run"))(str(picture))
    expected = predictor.predict(picture)
    assert figure.size == expected.figure.size
    assert values == {name: x for name, x in expected.values.items() if name != "file"}
    assert sorted(path.rpartition("_")[2] for path in files) == ["labels.png", "result.png"]


def test_inputs_are_those_of_the_task(picture, tmp_path):
    def kinds(task):
        inputs = next(iter(page(untrained(task), "a run").fns.values())).inputs
        return [(type(one), one.label) for one in inputs]

    assert kinds("BinaryChangeDetection") == [(gradio.Image, "before"), (gradio.Image, "after")]
    assert kinds("SpeechRecognition") == [(gradio.Audio, "file")]
    assert kinds("Tracking") == [(gradio.File, "file")]


def test_what_is_wrong_is_said_on_the_page(picture, tmp_path):
    predict = predict_of(page(untrained("BinaryChangeDetection"), "a run"))
    with pytest.raises(gradio.Error, match="give the after first"):
        predict(str(picture), None)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"cut")
    with pytest.raises(gradio.Error, match=r"broken\.png"):
        predict(str(picture), str(broken))


def test_without_files_there_is_no_page():
    with pytest.raises(ZooError, match="predicts nothing of files"):
        page(untrained("TokenHeadTraining"), "a run")


@pytest.mark.slow
def test_served(picture):
    blocks = page(untrained("Segmentation"), "a run")
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False)
        figure, values, files = client.predict(handle_file(picture), api_name="/predict")
        assert Image.open(figure).size[0] > 32 and len(files) == 2 and values
        with pytest.raises(AppError, match="give the file first"):
            client.predict(None, api_name="/predict")
    finally:
        blocks.close()
