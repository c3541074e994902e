"""Two processes at the same global batch take the steps of one."""

import csv

import pytest

import zoo.train
from tests.tiny import start, tiny_recipe

#: LayerNorm, no dropout: nothing depends on how a batch is shared out.
VIT = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


def losses(folder) -> list[float]:
    (table,) = folder.glob("runs/test/tiny/*/metrics.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss_step", "train/loss", "val/loss", "val/acc1", "test/loss", "test/acc1")
    return [float(row[name]) for row in rows for name in names if row[name]]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, monkeypatch):
    settings = dict(
        model__init_args__model="vit_tiny_patch16_224",
        model__init_args__model_args=VIT,
        data__init_args__batch_size=256,
        trainer__log_every_n_steps=1,
        trainer__max_epochs=2,
    )
    for name in ("one", "two"):
        recipe = tiny_recipe(tmp_path / name, **settings)
    two = start(
        "train", recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp",
        folder=tmp_path / "two",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "one")
    assert zoo.train.main([str(recipe)]) == 0
    output = two.communicate(timeout=240)[0]
    assert two.returncode == 0, output

    one, both = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 2 * (4 + 1 + 2) + 2
    assert both == pytest.approx(one, rel=1e-5)
