"""Runs on disk: their folder, checkpoints that a run goes on from exactly, metrics, pictures."""

from zoo.runs.checkpoints import CheckpointFiles, Checkpoints, read_checkpoint
from zoo.runs.folder import RunFolder, latest_run, new_run_path, recipe_name, resolve_checkpoint
from zoo.runs.metrics import MetricsTable, write_atomically

__all__ = [
    "CheckpointFiles",
    "Checkpoints",
    "MetricsTable",
    "RunFolder",
    "latest_run",
    "new_run_path",
    "read_checkpoint",
    "recipe_name",
    "resolve_checkpoint",
    "write_atomically",
]
