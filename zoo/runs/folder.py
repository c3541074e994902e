"""``runs/<recipe>/<time>/``: one folder for everything that a run leaves, and how it is found."""

from __future__ import annotations

import re
import time
from pathlib import Path

from zoo.errors import ZooError

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def run_path(root: Path, name: str) -> Path:
    """Where the folder of a run that starts now goes; see :func:`zoo.arguments.new_folder`."""
    return root / name / time.strftime("%Y-%m-%d_%H-%M-%S")


def latest_run(root: Path, name: str) -> Path:
    """The newest run of a recipe that has a checkpoint to go on from."""
    runs = sorted((path.parents[1] for path in (root / name).glob(f"*/{LAST}")), key=_order)
    if not runs:
        raise ZooError(
            f"--resume: no run with a checkpoint in {root / name}; start one without --resume"
        )
    return runs[-1]


def _order(run: Path) -> tuple[str, int]:
    """When a run started: of those in the same second, -10 comes behind -2."""
    found = re.fullmatch(r"(.*_\d\d-\d\d-\d\d)-(\d+)", run.name)
    return (found[1], int(found[2])) if found else (run.name, 1)


def resolve_checkpoint(source: Path) -> Path:
    """A checkpoint file, or the best (else the last) checkpoint of a run's folder."""
    if not source.is_dir():
        if source.exists():
            return source
        raise ZooError(f"{source} does not exist, expected a run's folder or a checkpoint")
    for name in (BEST, LAST):
        if (source / name).is_file():
            return source / name
    raise ZooError(f"{source} has no {BEST}, expected a run's folder or a checkpoint")
