from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import zoo
from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.data.synthetic.series import made_series
from zoo.data.time_series.forecasting import (
    Forecasting,
    SmallSeries,
    read_series,
    write_series,
)
from zoo.errors import ZooError
from zoo.tasks.time_series.forecasting import SeriesForecasting

RECIPES = ROOT / "recipes/vision/mambamixer"


def write(path: Path, rows: int) -> None:
    steps = np.arange(rows, dtype=float)
    write_series(path, pd.DataFrame({"HUFL": steps, "OT": -2 * steps}))


def test_splits_of_ett(tmp_path):
    write(tmp_path / "ETTh1.csv", 17_420)
    data = Forecasting(str(tmp_path / "ETTh1.csv"), seq_len=96, pred_len=96)
    train, val, test = (data.load(split) for split in ("train", "val", "test"))
    # 12, 4 and 4 months of hours; what comes after is not used
    assert [len(part) for part in (train, val, test)] == [8640 - 191, 2880 - 95, 2880 - 95]
    first = test[0]
    assert first["past"].shape == (96, 2) and first["future"].shape == (96, 2)
    values = first["future"][:, 0] * data.std[0] + data.mean[0]
    np.testing.assert_allclose(values, np.arange(11_520, 11_616), rtol=1e-5)
    np.testing.assert_allclose(data.mean[0], np.arange(8640).mean())
    np.testing.assert_allclose(data.std[0], np.arange(8640).std())
    last = test[len(test) - 1]["future"][-1, 0] * data.std[0] + data.mean[0]
    assert last == pytest.approx(14_399, rel=1e-5)


def test_other_series_are_split_7_1_2(tmp_path):
    write(tmp_path / "weather.csv", 1000)
    data = Forecasting(str(tmp_path / "weather.csv"), seq_len=20, pred_len=10)
    assert [len(data.load(s)) for s in ("train", "val", "test")] == [700 - 29, 100 - 9, 200 - 9]


def test_four_made_series_repeat_another(tmp_path):
    table = made_series(600, seed=0)
    for name in ("MULL", "LUFL", "LULL", "OT"):
        assert np.corrcoef(table.HUFL[:-20], table[name][20:])[0, 1] > 0.97
        assert abs(np.corrcoef(table.HULL[:-20], table[name][20:])[0, 1]) < 0.4
    data = Forecasting(str(tmp_path / "made" / "made.csv"), 96, 16, sample=SmallSeries(600))
    data.load("train")
    assert data.names == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing, expected a CSV file with a column date"),
        ("a,b\n1,2\n", "columns a, b, expected date and one or more variates"),
        ("date,a\n2020-01-01,1\n2020-01-02,x\n", "line 3, column a: 'x', expected a number"),
    ],
)
def test_broken_files(tmp_path, text, message):
    path = tmp_path / "series.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ZooError, match=message):
        read_series(path)


def test_short_files(tmp_path):
    write(tmp_path / "ETTh2.csv", 1000)
    with pytest.raises(ZooError, match="1,000 rows, the split etth needs 14,400"):
        Forecasting(str(tmp_path / "ETTh2.csv")).load("train")
    with pytest.raises(ZooError, match=r"the val part has .* steps, fewer than seq_len"):
        Forecasting(str(tmp_path / "ETTh2.csv"), 96, 720, split="ratio").load("val")


def test_linear_baselines():
    past = torch.randn(2, 30, 3)
    for name in ("nlinear", "dlinear"):
        model = zoo.create_model(name, seq_len=30, pred_len=5)
        assert model(past).shape == (2, 5, 3)
    with torch.no_grad():
        model = zoo.create_model("nlinear", seq_len=30, pred_len=5)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(past), past[:, -1:].expand(-1, 5, -1))


def small(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "series" / "made.csv"
    sample = ['--data.init_args.sample={"hours": 900}', f"--data.init_args.path={path}"]
    return Recipe(RECIPES / "small_tsm2.yaml", [*sample, *overrides])


def test_recipe_runs_and_predicts(tmp_path):
    quiet()
    recipe = small(tmp_path)
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        limit_val_batches=1, limit_test_batches=1, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    assert set(metrics) == {"test/mse", "test/mae", "test/mse_last"}
    assert set(task.figures()) == {"forecasts"}
    rows = task.predict_files([data.path], data, tmp_path)
    forecast = pd.read_csv(tmp_path / rows[0]["table"], index_col="step")
    assert forecast.shape == (16, 7) and (tmp_path / "0001_made.png").is_file()
    # in the units of the file, not standardised
    assert abs(forecast.OT.mean() - 15) < 10
    write(tmp_path / "other.csv", 200)
    with pytest.raises(ZooError, match="variates HUFL, OT, expected HUFL, HULL"):
        task.predict_files([tmp_path / "other.csv"], data, tmp_path)


def test_figures_of_bfloat16(tmp_path):
    recipe = small(tmp_path)
    _, data = recipe.build()
    task = SeriesForecasting("dlinear", {"seq_len": 96, "pred_len": 16})
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_test_batches=1, accelerator="cpu", precision="bf16-mixed",
    )  # fmt: skip
    trainer.test(task, datamodule=data, verbose=False)
    assert set(task.figures()) == {"forecasts"}


def test_lengths_must_agree(tmp_path):
    task, data = small(tmp_path, "--data.init_args.seq_len=64").build()
    with pytest.raises(ZooError, match="seq_len is 64, but the network was built for 96"):
        task.check_data(data)


def test_paper_recipe_builds():
    with torch.device("meta"):
        task, data = Recipe(RECIPES / "paper_tsm2.yaml").build()
    assert sum(p.numel() for p in task.model.parameters()) == 243_884
    assert (data.seq_len, data.pred_len) == (512, 96)
