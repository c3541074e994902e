"""Two processes do what one does."""

import csv
import json
import os
import socket
import subprocess
import sys

import pytest

import zoo.train
from tests.tiny import ROOT, start, tiny_recipe
from tests.tiny_tasks import TINY

#: LayerNorm, no dropout: nothing depends on how a batch is shared out.
VIT = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
#: Scores that are times, or of the first batch of a process.
OWN = ("rtf", "time_ratio", "speed_up", "tokens_per_step", "same_text")
#: What a process says of its last step alone.
STEP = ("loss", "train/loss_step")


def losses(folder) -> list[float]:
    (table,) = folder.glob("runs/test/tiny/*/metrics.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss_step", "train/loss", "val/loss", "val/acc1", "test/loss", "test/acc1")
    return [float(row[name]) for row in rows for name in names if row[name]]


def test_two_processes_equal_one(tmp_path, monkeypatch):
    """The command, at the same global batch."""
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


def launch(folder, names, rank: int, processes: int, port: int) -> subprocess.Popen:
    """Start one of the processes that run the tasks, as torchrun would."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "ZOO_CACHE": str(folder / f"cache{processes}"),
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
    }
    if processes > 1:
        environment |= {
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(processes),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "tests",
        }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.two_processes", str(folder), *names],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each task gave: (one process, rank 0, rank 1) by its name, and what was printed."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = ((0, 1), (0, 2), (1, 2))
    running = [launch(folder, TINY, rank, processes, port) for rank, processes in ranks]
    printed = [process.communicate(timeout=1500)[0] for process in running]
    found = {}
    for name in TINY:
        paths = [folder / f"{name}.{processes}.{rank}.json" for rank, processes in ranks]
        if all(path.is_file() for path in paths):
            found[name] = [json.loads(path.read_text()) for path in paths]
    return found, "\n".join(text[-3000:] for text in printed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_task_on_two_processes(name, results):
    found, printed = results
    assert name in found, printed
    one, first, second = found[name]
    assert first["weights"] == second["weights"], "the processes have gone apart"
    assert first["steps"] == one["steps"] > 0
    # what begins at zero is all rounding after a few steps
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=3e-5)
    for what in ("tested", "trained"):
        scores = [
            {
                key: value
                for key, value in result[what].items()
                if not key.endswith(OWN) and key not in STEP
            }
            for result in (one, first)
        ]
        assert scores[0] and scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-6)
