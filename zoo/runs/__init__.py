"""Runs on disk: their folder, checkpoints that a run goes on from exactly, metrics, pictures."""

from zoo.lazy import lazy_names

_HOMES = {
    "CheckpointFiles": "zoo.runs.checkpoints",
    "Checkpoints": "zoo.runs.checkpoints",
    "MetricsTable": "zoo.runs.metrics",
    "RunFolder": "zoo.runs.keeper",
    "latest_run": "zoo.runs.folder",
    "read_checkpoint": "zoo.runs.checkpoints",
    "resolve_checkpoint": "zoo.runs.folder",
    "run_path": "zoo.runs.folder",
    "write_atomically": "zoo.atomic",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
