"""A run that was killed and resumed ends like one that was never stopped, bit by bit."""

import csv
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import start, tiny_recipe

STEPS_PER_EPOCH = 1257 // 128
EVERY = 4
KILL_AT = 2 * STEPS_PER_EPOCH + 2 * EVERY + 2  # in epoch 2, between two checkpoints


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs" / "test" / "tiny").iterdir()
    return run


def last_step(run: Path) -> int:
    table = run / "metrics.csv"
    if not table.is_file():
        return -1
    with table.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["step"]]
    return max(steps, default=-1)


def differing(a, b, path="") -> list[str]:
    """Places in which two nested checkpoints differ."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {a.keys() ^ b.keys()}"]
        return [p for key in a for p in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [
            p
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for p in differing(x, y, f"{path}.{i}")
        ]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


@pytest.mark.slow
def test_killed_and_resumed_run_ends_with_the_same_numbers(tmp_path):
    everything_random = dict(
        model__init_args__ema_decay=0.9,
        model__init_args__mixup={"mixup": 0.8, "cutmix": 1.0},
        model__init_args__model_args={
            "stem_width": 8,
            "channels": [8, 16, 16, 32],
            "drop_rate": 0.1,
            "drop_path_rate": 0.2,
        },
        data__init_args__augmentation={"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
        checkpoint__every_n_steps=EVERY,
        trainer__max_epochs=6,
        trainer__log_every_n_steps=1,
    )
    for name in ("whole", "killed"):
        recipe = tiny_recipe(tmp_path / name, **everything_random)
    relative = recipe.relative_to(tmp_path / "killed")

    whole = start("train", relative, folder=tmp_path / "whole")
    # worker processes in one of the two: they must not matter
    killed = start("train", relative, "--data.init_args.num_workers", 2, folder=tmp_path / "killed")
    deadline = time.monotonic() + 240
    while True:
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        runs = list((tmp_path / "killed" / "runs" / "test" / "tiny").glob("*"))
        if runs and last_step(runs[0]) >= KILL_AT:
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = only_run(tmp_path / "killed")
    at_kill = last_step(run)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] <= at_kill + 1
    assert saved["global_step"] % STEPS_PER_EPOCH != 0, "the checkpoint must be in mid-epoch"
    assert not (run / "learning_curve.png").exists()

    resumed = start("train", relative, "--resume", folder=tmp_path / "killed")
    for process in (whole, resumed):
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    assert only_run(tmp_path / "killed") == run

    straight = only_run(tmp_path / "whole")
    assert (run / "metrics.csv").read_text() == (straight / "metrics.csv").read_text()
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(r / "checkpoints" / name, weights_only=True) for r in (straight, run))
        for checkpoint in (a, b):
            del checkpoint["zoo"]  # the recipes differ in the number of workers
        assert differing(a, b) == []
    for name in ("learning_curve.png", "confusion_matrix.png", "predictions.png", "recipe.yaml"):
        assert (run / name).stat().st_size > 0
