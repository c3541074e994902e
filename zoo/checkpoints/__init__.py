"""Weights in and out: own and foreign checkpoints, from files, folders, URLs and the hub."""

from __future__ import annotations

from zoo.checkpoints.formats import read_metadata
from zoo.checkpoints.loading import head_names, load_pretrained
from zoo.checkpoints.report import LoadReport
from zoo.checkpoints.saving import save_state_dict
from zoo.checkpoints.state_dict import read_state_dict

__all__ = [
    "LoadReport",
    "head_names",
    "load_pretrained",
    "read_metadata",
    "read_state_dict",
    "save_state_dict",
]
