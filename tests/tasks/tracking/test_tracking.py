from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo.predict
from tests.test_cli import error_of
from zoo.data.formats.mot_files import read_clip
from zoo.data.tracking.tracks import MOTChallenge, SmallScenes
from zoo.errors import ZooError
from zoo.models.tracking._motion import KalmanMotion
from zoo.tasks.tracking.tracking import Tracking, follow
from zoo.train import main as train

SMALL = {"encoder": {"d_model": 16, "n_layer": 1}, "decoder": {"d_model": 16, "n_layer": 2}}
SAMPLE = SmallScenes(train=1, val=1, test=2, frames=16, objects=3, motions=["line"])

RECIPE = """
model:
  class_path: zoo.tasks.Tracking
  init_args:
    model_args: {{encoder: {{d_model: 16, n_layer: 1}}, decoder: {{d_model: 16, n_layer: 2}}}}
    motion: kalman
    optimizer: {{lr_batch_size: null}}
data:
  class_path: zoo.data.MOTChallenge
  init_args:
    root: {root}
    sample: {{train: 1, val: 1, test: 2, frames: 16, objects: 3, motions: [line]}}
    test: test
    batch_size: 8
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run whose test and predictions use a Kalman filter, and its data."""
    folder = tmp_path_factory.mktemp("tracking")
    recipe = folder / "recipes" / "tracking" / "tiny.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE.format(root=folder / "clips"))
    assert train([str(recipe), "--runs", str(folder / "runs")]) == 0
    return folder


def trained(run: Path) -> Path:
    (path,) = (run / "runs" / "tracking" / "tiny").iterdir()
    return path


def test_a_run_measures_and_draws(run):
    figures = [path.stem for path in trained(run).rglob("*.png")]
    assert "tracks" in figures
    written = "".join(path.read_text() for path in trained(run).rglob("*.csv"))
    for name in ("hota", "deta", "assa", "mota", "idf1", "idsw", "iou", "error"):
        assert f"test/{name}" in written


def test_predict_writes_tracks_and_pictures(run, tmp_path):
    clip = run / "clips" / "test" / "line-00"
    output = tmp_path / "out"
    arguments = [str(clip), "--checkpoint", str(trained(run)), "--output", str(output)]
    assert zoo.predict.main(arguments) == 0
    rows = np.loadtxt(output / "line-00.txt", delimiter=",")
    assert rows.shape[1] == 10 and set(rows[:, 6]) == {1.0}
    truth = read_clip(clip).truth
    first = rows[rows[:, 0] == 1][:, 2:6]
    gaps = np.abs(first[:, None] - truth[truth[:, 0] == 1][:, 2:]).max(-1).min(1)
    assert gaps.max() < 8, "boxes stand where objects are"
    with Image.open(output / "line-00.webp") as animation:
        assert animation.n_frames == 16 and animation.size == (640, 360)
    assert (output / "line-00.png").stat().st_size > 10_000
    assert "line-00.txt" in (output / "predictions.csv").read_text()


def test_predict_needs_detections(run, tmp_path, capsys, caplog):
    (tmp_path / "clip" / "gt").mkdir(parents=True)
    (tmp_path / "clip" / "gt" / "gt.txt").write_text("1,1,1,1,4,8,1,1,1\n")
    end = ["--checkpoint", str(trained(run)), "--output", str(tmp_path / "out")]
    line = error_of(capsys, zoo.predict.main([str(tmp_path / "clip"), *end]))
    assert "no detections: expected a file such as det/det.txt" in line
    (tmp_path / "clip" / "det.txt").write_text("1,-1,1,1,4,8,0.9\n")
    assert zoo.predict.main([str(tmp_path / "clip"), *end]) == 0
    assert "size of the pictures is not known" in caplog.text


def test_following_true_tracks(run):
    clip = read_clip(run / "clips" / "test" / "line-00")
    predicted, true = follow(KalmanMotion(), clip)
    assert predicted.shape == true.shape == (3 * (16 - 6), 4)
    assert (predicted - true)[:, :2].norm(dim=1).mean() < 3


def test_wrong_data_is_said(run):
    task = Tracking(model_args=SMALL)
    data = MOTChallenge(str(run / "clips"), interval=7)
    with pytest.raises(ZooError, match="interval is 7, but the model was made for 5"):
        task.check_data(data)
    with pytest.raises(ZooError, match="has no tracks, expected"):
        task.check_data(zoo.data.Digits())
    with pytest.raises(ZooError, match="unexpected keyword argument 'width'"):
        Tracking(model_args={"width": 3})
