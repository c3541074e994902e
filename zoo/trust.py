"""Whose classes a recipe may name.

A recipe given by its path is the user's own and may name any class. One that comes inside a
checkpoint is a stranger's: to import what it names would be to run the stranger's code. It may name
the tasks and data modules of zoo, the classes of Lightning listed here, which take plain data, and
what the user allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo.errors import ZooError
from zoo.lazy import is_class
from zoo.recipes import class_paths

#: Whose tasks and data modules any recipe may name.
OURS = ("zoo.tasks", "zoo.data")
#: Classes of Lightning that a recipe in a checkpoint may name. They are made of plain data, write
#: into folders and run nothing; loggers that send what they log to a server are not among them.
LIGHTNING: Mapping[str, Sequence[str]] = {
    "lightning.pytorch.callbacks": (
        "DeviceStatsMonitor",
        "EMAWeightAveraging",
        "EarlyStopping",
        "GradientAccumulationScheduler",
        "LearningRateMonitor",
        "ModelCheckpoint",
        "ModelSummary",
        "RichModelSummary",
        "RichProgressBar",
        "StochasticWeightAveraging",
        "TQDMProgressBar",
        "Timer",
        "WeightAveraging",
    ),
    "lightning.pytorch.loggers": ("CSVLogger", "TensorBoardLogger"),
    "lightning.pytorch.plugins": (
        "DoublePrecision",
        "HalfPrecision",
        "MixedPrecision",
        "TorchSyncBatchNorm",
    ),
    "lightning.pytorch.profilers": ("AdvancedProfiler", "PassThroughProfiler", "SimpleProfiler"),
    "lightning.pytorch.strategies": ("DDPStrategy", "FSDPStrategy", "SingleDeviceStrategy"),
}


def may_name(path: str) -> bool:
    """Whether any recipe may name this class; nothing is imported to say so."""
    package, _, name = path.rpartition(".")
    if path.startswith(tuple(f"{ours}." for ours in OURS)):
        return is_class(path)
    return any(
        name in names and (package == home or package.startswith(f"{home}."))
        for home, names in LIGHTNING.items()
    )


def check_trusted(content: Mapping[str, Any], allowed: Sequence[str], shown_as: str) -> None:
    """A recipe that came in a checkpoint names no class but those it may.

    Raises:
        ZooError: it does; the message says how to allow them.
    """
    foreign = {
        str(path): where
        for where, path in class_paths(content)
        if not (isinstance(path, str) and (path in allowed or may_name(path)))
    }
    if foreign:
        named = ", ".join(f"{path} ({where})" for path, where in foreign.items())
        raise ZooError(f"{shown_as}: its recipe names {named}; {how_to_allow(foreign)}")


def how_to_allow(paths: Sequence[str] | Mapping[str, Any]) -> str:
    """The end of a message about classes that were not imported."""
    options = " ".join(f"--allow-class {path}" for path in paths)
    return (
        "a recipe in a checkpoint may name classes of zoo and Lightning alone, as importing others "
        f"runs their code. If you trust who made it: {options}"
    )


def names_in(value: Any) -> Iterator[str]:
    """Every text in a value that could be the name of a class."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from names_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from names_in(inner)
    elif isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        yield value
