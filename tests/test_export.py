"""Trained models for other programs: what is written is what the model computes."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import timm
import torch
from PIL import Image

import zoo
import zoo.export
from tests.test_predictor import untrained
from tests.tiers import tiers
from zoo.errors import ZooError
from zoo.export import captured_call, export
from zoo.runs.hub_folder import push

#: Task -> files that it is exported for.
TASKS = {
    "ImageClassification": ["picture.png"],
    "PrunedClassification": ["picture.png"],
    "MedicalClassification": ["picture.png"],
    "Segmentation": ["picture.png"],
    "CrowdCounting": ["picture.png"],
    "Inpainting": ["picture.png"],
    "SuperResolution": ["picture.png"],
    "VideoDepth": ["picture.png"],
    "MultiTask": ["picture.png"],
    "BinaryChangeDetection": ["picture.png", "later.png"],
    "SequenceClassification": ["sound.wav"],
    "SpeechRecognition": ["sound.wav"],
    "Tracking": ["det.csv"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    Image.fromarray(pixels[::-1].copy()).save(folder / "later.png")
    Image.fromarray((pixels[..., 0] > 200).astype(np.uint8) * 255).save(folder / "picture_mask.png")
    soundfile.write(folder / "sound.wav", random.normal(size=16000) / 10, 16000)
    rows = [f"{frame},-1,{5 + frame},{6 + frame},9,9,0.9\n" for frame in range(1, 13)]
    (folder / "det.csv").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("task", tiers(TASKS, slow=list(TASKS)[1:]))
def test_onnx_is_the_model(task, files, tmp_path):
    """Of recurrences, branches, several outputs; export itself compares them."""
    predictor = untrained(task)
    path = tmp_path / "model.onnx"
    difference = export(predictor, "onnx", path, [files / name for name in TASKS[task]])
    assert difference is not None and difference < 1e-4
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "pkg.onnxscript.torch_lib"}


@pytest.mark.slow
def test_published_weights_become_a_program(files, tmp_path):
    command = ["resnet10t", "--to", "torch_export", "--output", str(tmp_path / "it.pt2")]
    weights = tmp_path / "resnet.safetensors"
    network = timm.create_model("resnet10t", num_classes=7)
    zoo.checkpoints.save_state_dict(network.state_dict(), weights)
    command += ["--pretrained", str(weights), "--num_classes", "7"]
    assert zoo.export.main([*command, "--input", str(files / "picture.png")]) == 0
    program = torch.export.load(tmp_path / "it.pt2").module()
    images = torch.randn(1, 3, *network.default_cfg["input_size"][1:])
    with torch.no_grad():
        torch.testing.assert_close(program(x=images), network.eval()(images))


@pytest.mark.slow
def test_any_number_at_a_time(files, tmp_path):
    predictor = untrained("ImageClassification")
    with torch.no_grad():
        images = torch.randn(5, 3, 16, 16)
        expected = predictor.task.eval_model(images)
    for to in ("torch_export", "onnx"):
        path = tmp_path / f"model{zoo.export.FORMATS[to]}"
        export(predictor, to, path, [files / "picture.png"], batch=None)
    found = torch.export.load(tmp_path / "model.pt2").module()(x=images)
    torch.testing.assert_close(found, expected)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_program_says_what_it_is_of(trained_run, files, tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    command = [str(trained_run), "--to", "onnx", "--output", str(path)]
    assert zoo.export.main([*command, "--input", str(files / "picture.png"), "--batch", "3"]) == 0
    assert "differs from the model by" in capsys.readouterr().out
    program = onnx.load(path)
    note = {entry.key: entry.value for entry in program.metadata_props}
    assert note["task"] == "ImageClassification"
    assert json.loads(note["class_names"]) == [str(digit) for digit in range(10)]
    assert len(json.loads(note["mean"])) == 3
    sizes = [axis.dim_value for axis in program.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [3, 3, 32, 32]


def test_another_answer_is_not_written(files, tmp_path, monkeypatch):
    predictor = untrained("ImageClassification")
    monkeypatch.setattr(zoo.export, "TOLERANCE", -1.0)
    with pytest.raises(ZooError, match="differs from the model's by"):
        export(predictor, "torch_export", tmp_path / "it.pt2", [files / "picture.png"])
    assert not list(tmp_path.iterdir())


def test_a_program_is_for_what_predict_gives(files):
    predictor = untrained("BinaryChangeDetection")
    call = captured_call(predictor, [files / "picture.png", files / "later.png"])
    assert [tuple(t.shape) for t in call.inputs.values()] == [(1, 3, 64, 64)] * 2
    assert "forward" not in vars(call.module)  # as it was


def test_hub_folder_is_the_run(trained_run, files, tmp_path, capsys):
    folder = tmp_path / "hub"
    command = [str(trained_run), "--to", "hf", "--output", str(folder)]
    assert zoo.export.main(command) == 0
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: zoo\n") and "| test/acc1 |" in card
    assert "![learning curve](learning_curve.png)" in card
    assert (folder / "learning_curve.png").is_file()
    one, other = (zoo.load(place).predict(files / "picture.png") for place in (folder, trained_run))
    assert one.values == other.values
    assert zoo.export.main(command) == 2
    assert "exists already, expected a new name" in capsys.readouterr().err


def test_a_folder_comes_from_the_hub(trained_run, files, tmp_path, monkeypatch):
    """As the hub's own client is asked for it."""
    folder, asked = tmp_path / "hub", []
    zoo.export.main([str(trained_run), "--to", "hf", "--output", str(folder)])

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    zoo.load("hf://me/digits@v1").predict(files / "picture.png")
    assert asked[0] == ("me/digits", "config.json", "v1")
    assert ("me/digits", "model.safetensors", "v1") in asked


def test_push(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda name, exist_ok: done.append(name))
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **given: done.append(given))
    assert push(tmp_path, "me/digits") == "me/digits"
    assert done == ["me/digits", {"repo_id": "me/digits", "folder_path": tmp_path}]
    with pytest.raises(ZooError, match="expected OWNER/NAME"):
        push(tmp_path, "digits")


def test_a_strangers_recipe_runs_nothing(trained_run, tmp_path):
    folder = tmp_path / "hub"
    zoo.export.main([str(trained_run), "--to", "hf", "--output", str(folder)])
    config = folder / "config.json"
    config.write_text(config.read_text().replace("zoo.tasks.ImageClassification", "os.system"))
    with pytest.raises(ZooError, match=r"os\.system"):
        zoo.load(folder)
    config.write_text("{}")
    with pytest.raises(ZooError, match=r"config\.json does not hold the recipe of a run"):
        zoo.load(folder)


def test_weights(trained_run, tmp_path):
    path = tmp_path / "digits.safetensors"
    assert zoo.export.main([str(trained_run), "--to", "safetensors", "--output", str(path)]) == 0
    state = zoo.load(trained_run).task.eval_model.state_dict()
    found = zoo.checkpoints.read_state_dict(str(path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--output", "it.onnx"], "needs --input FILE"),
        (["--to", "onnx", "--output", "it.pt2", "--input", "a.png"], "must end in .onnx"),
        (["--to", "hf", "--output", "."], "exists already"),
        (["--to", "hf", "--output", "it", "--input", "a.png"], "are for onnx and torch_export"),
        (["--to", "safetensors", "--output", "a.safetensors", "--push", "a/b"], "is for --to hf"),
        (["--to", "onnx", "--output", "it.onnx", "--input", "a", "--batch", "0"], "1 or more"),
    ],
)
def test_wrong_commands_end_in_one_line(arguments, message, capsys):
    assert zoo.export.main(["runs/none", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_onnx_cannot_do_is_said(tmp_path):
    predictor = untrained("AudioModeling")
    soundfile.write(tmp_path / "it.wav", np.zeros(4000), 16000)
    with pytest.raises(ZooError, match=r"zoo\.cauchy_kernel.*use --to torch_export"):
        export(predictor, "onnx", tmp_path / "it.onnx", [tmp_path / "it.wav"])
