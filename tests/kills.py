"""Runs that are killed, over and over, and gone on with: do they end like one that never was?

``python -m tests.kills [TASK ...] [--kills N]`` trains each task of :mod:`tests.tiny_tasks` twice,
once in peace, once killed with SIGKILL ``N`` times at moments that nobody chose, and compares the
metrics and all that is in the checkpoints to the last digit. Minutes; the exit code says how many
tasks differ.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.tiny import start
from tests.tiny_tasks import tiny_task

TASKS = ("ImageClassification", "SuperResolution", "SpeechRecognition")
#: Seconds in which a run must come as far as the next kill.
PATIENCE = 600
#: Metrics that are times, of which no two runs have the same.
TIMES = ("test/rtf",)


def only_run(folder: Path) -> Path:
    """The folder of the run that was started in ``folder``."""
    (run,) = (path.parent for path in folder.glob("runs/**/metrics.csv"))
    return run


def last_step(folder: Path) -> int:
    """The last step that the run in ``folder`` has written down; -1 before there is one."""
    tables = list(folder.glob("runs/**/metrics.csv"))
    if not tables:
        return -1
    with tables[0].open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["step"]]
    return max(steps, default=-1)


def kill_at(step: int, folder: Path, *arguments: Any, delay: float = 0.0) -> None:
    """Train in ``folder``, and kill it ``delay`` seconds after it has written down a step."""
    step = max(step, last_step(folder) + 1)
    running = start("train", *arguments, folder=folder)
    deadline = time.monotonic() + PATIENCE
    while last_step(folder) < step:
        if running.poll() is not None:
            raise AssertionError(f"ended by itself:\n{running.stdout.read()}")
        if time.monotonic() > deadline:
            running.kill()
            raise AssertionError(f"never came to step {step}")
        time.sleep(0.02)
    time.sleep(delay)
    running.send_signal(signal.SIGKILL)
    running.communicate()


def finish(folder: Path, *arguments: Any) -> Path:
    """Train in ``folder`` to the end; the folder of the run."""
    running = start("train", *arguments, folder=folder)
    output = running.communicate(timeout=PATIENCE)[0]
    if running.returncode:
        raise AssertionError(f"exit code {running.returncode}:\n{output}")
    return only_run(folder)


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs differ: in their metrics, or anywhere in their checkpoints."""
    found = []
    if _table(one / "metrics.csv") != _table(other / "metrics.csv"):
        found.append("metrics.csv")
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (
            torch.load(run / "checkpoints" / name, weights_only=True, map_location="cpu")
            for run in (one, other)
        )
        for checkpoint in (a, b):
            del checkpoint["zoo"]  # recipes may differ in what must not matter
        found += [f"{name}{place}" for place in _differing(a, b)]
    found += [f"left behind: {path.name}" for path in other.rglob(".*.part")]
    return found


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without what is measured in seconds."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def _differing(a: Any, b: Any, place: str = "") -> Iterator[str]:
    if isinstance(a, dict):
        if a.keys() != b.keys():
            yield f"{place}: keys {a.keys() ^ b.keys()}"
        for key in a.keys() & b.keys():
            yield from _differing(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{place}: length"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _differing(x, y, f"{place}.{i}")
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield place


def try_task(name: str, kills: int, seed: int) -> list[str]:
    """Train a task in peace and killed ``kills`` times; the differences."""
    path, overrides = tiny_task(name)
    epochs = 4 * int(next(o.partition("=")[2] for o in reversed(overrides) if "max_epochs" in o))
    arguments = [path, *overrides, f"--trainer.max_epochs={epochs}", *_OFTEN]
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        peaceful, killed = Path(folder, "peaceful"), Path(folder, "killed")
        peaceful.mkdir()
        killed.mkdir()
        straight = finish(peaceful, *arguments)
        steps = last_step(peaceful) - 1
        # from the second checkpoint on, there is something to go on from
        moments = sorted(chance.sample(range(4, steps), min(kills, steps - 4)))
        begun: Sequence[Any] = arguments
        for step in moments:
            kill_at(step, killed, *begun, delay=chance.uniform(0, 0.3))
            begun = ["--resume", only_run(killed)]
        return differences(straight, finish(killed, *begun))


_OFTEN = (
    "--checkpoint.every_n_steps=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
)


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    differ = 0
    for name in arguments.tasks:
        found = try_task(name, arguments.kills, arguments.seed)
        differ += bool(found)
        said = f"differs in {', '.join(found[:5])}" if found else "equal to the last digit"
        print(f"{name}: killed {arguments.kills} times, {said}", flush=True)
    return differ


if __name__ == "__main__":
    sys.exit(main())
