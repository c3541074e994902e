import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.dense.test_super_resolution import train
from zoo.data.dense.multi_task import NYUD
from zoo.data.dense.pascal_context import PASCALContext
from zoo.data.formats.maps import SmallSample
from zoo.errors import ZooError
from zoo.tasks import OptimizerSettings, ScheduleSettings
from zoo.tasks.dense.multi_task import MultiTask

SAMPLE = SmallSample(train=4, val=2, test=2, size=32)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks") / "rooms"
    return NYUD(str(root), size=(32, 32), num_classes=4, sample=SAMPLE, batch_size=2)


def task(tasks, model_args=None, **changes) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(
        model="taskexpert_conv",
        model_args={"tasks": tasks, "dim": 8, "n_experts": 2, "width": 8, **(model_args or {})},
        optimizer=OptimizerSettings(lr=1e-3, lr_batch_size=None),
        schedule=ScheduleSettings(sched="constant", warmup_epochs=0),
        **changes,
    )


def test_scores_gain_and_pictures(rooms):
    module = task(
        {"semseg": 4, "depth": 1, "normals": 3, "edge": 1},
        single={"semseg_miou": 0.5, "depth_rmse": 1.0},
        balance_weight=0.1,
    )
    scores = train(module, rooms, 1).test(module, datamodule=rooms, verbose=False)[0]
    names = "semseg_miou depth_rmse normals_merr edge_odsf edge_loss delta_m loss"
    assert {f"test/{name}" for name in names.split()} <= set(scores)
    expected = 50 * ((scores["test/semseg_miou"] - 0.5) / 0.5 - (scores["test/depth_rmse"] - 1))
    assert scores["test/delta_m"] == pytest.approx(expected, rel=1e-4)
    assert "examples" in module.figures()


def test_people_and_saliency(tmp_path):
    data = PASCALContext(str(tmp_path / "pascal"), size=(32, 32), sample=SAMPLE, batch_size=2)
    module = task(dict(data.outputs))
    scores = train(module, data, 1).test(module, datamodule=data, verbose=False)[0]
    assert {"test/human_parts_miou", "test/sal_maxf"} <= set(scores)
    assert "examples" in module.figures()


@pytest.mark.parametrize("fixed", [False, True])
def test_pictures_of_any_size(rooms, tmp_path, fixed):
    args = {"position_gate": True, "img_size": [32, 32]} if fixed else {}
    module = task({"semseg": 4, "depth": 1, "normals": 3, "edge": 1}, args)
    path = tmp_path / "odd.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)).save(path)
    outputs = module.eval().predict_image(torch.rand(3, 45, 70), rooms)
    assert all(output.shape[-2:] == (45, 70) for output in outputs.values())
    folder = tmp_path / "out"
    folder.mkdir()
    (row,) = module.predict_files([path], rooms, folder)
    assert set(row) == {"file", "most frequent class", "mean_depth"}
    assert (folder / "0001_odd.png").is_file()


def test_wrong_settings_are_said(rooms):
    with pytest.raises(ZooError, match="'flow' has no loss"):
        task({"flow": 2})
    with pytest.raises(ZooError, match="'sal_maxf' is not measured"):
        task({"depth": 1}, single={"sal_maxf": 0.5})
    with pytest.raises(ZooError, match="'sal', of which the data have no labels"):
        task({"sal": 2}).check_data(rooms)
    with pytest.raises(ZooError, match="semseg has 7 channels, expected the data's 4"):
        task({"semseg": 7}).check_data(rooms)
