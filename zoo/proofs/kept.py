"""Measurements and models of proofs, kept until something changes that they were made from.

A key stands for settings, seed, the text of the recipe, and the source files involved: those that
a module imports, directly or not, and those of classes and registered models that are named in any
of these. Another version of PyTorch or of the compiled ops changes it as well.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple

import numpy as np
import torch

import zoo
from zoo.atomic import write_atomically
from zoo.checkpoints.exports import cache_folder
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

_ROOT = Path(zoo.__file__).parent
#: What draws, talks or keeps, and changes no number.
_ASIDE = (
    "zoo.atomic",
    "zoo.plots",
    "zoo.show",
    "zoo.command",
    "zoo.proofs.base",
    "zoo.proofs.kept",
)
_MODEL = re.compile(r"^@register_model.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.]*")


class Kept(NamedTuple):
    """A measurement, the seconds that it took, and whether it was found among the kept ones."""

    measured: Measured
    seconds: float
    found: bool


def measure(measurement: Measurement, seed: int, anew: bool = False) -> Kept:
    """Measure, or find what the same settings, seed and code gave before.

    Args:
        measurement: with its settings, as :func:`zoo.proofs.run.read_proofs` gives it.
        seed: of everything that is drawn.
        anew: measure in any case.
    """
    if not measurement.seeded:
        seed = 0
    kind = type(measurement).__module__
    made_from = [
        f"{kind}.{type(measurement).__qualname__}",
        measurement.settings,
        seed,
        measurement.made_from(seed),
    ]
    file = cache_folder() / "proofs" / "measured" / f"{key(made_from, [kind, *measurement.runs])}"
    file = file.with_suffix(".npz")
    if file.is_file() and not anew:
        return _read(file)
    started = time.monotonic()
    measured = measurement.measure(seed)
    seconds = time.monotonic() - started
    write_atomically(file, _to_bytes(measured, seconds))
    return Kept(measured, seconds, False)


def _to_bytes(measured: Measured, seconds: float) -> bytes:
    pictures = [list(row) for row in measured.pictures]
    about = {
        "values": {name: float(value) for name, value in measured.values.items()},
        "curves": [
            asdict(curve) | {"x": [*map(float, curve.x)], "y": [*map(float, curve.y)]}
            for curve in measured.curves
        ],
        "pictures": pictures,
        "seconds": seconds,
    }
    arrays = {
        f"{number}/{place}": row[name]
        for number, row in enumerate(measured.pictures)
        for place, name in enumerate(pictures[number])
    }
    data = BytesIO()
    np.savez_compressed(data, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    return data.getvalue()


def _read(file: Path) -> Kept:
    with np.load(file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        pictures = [
            {name: content[f"{number}/{place}"] for place, name in enumerate(names)}
            for number, names in enumerate(about["pictures"])
        ]
    curves = [Curve(**curve | {"axes": Axes(**curve["axes"])}) for curve in about["curves"]]
    return Kept(Measured(about["values"], curves, pictures), about["seconds"], True)


def key(made_from: Any, modules: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that stand for what a program makes.

    Args:
        made_from: all that it is given; becomes JSON.
        modules: of zoo, whose code makes it; a package stands for all its files.
    """
    text = json.dumps(made_from, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{text}\n{torch.__version__}\n".encode())
    files = source_files([*modules, *_named(_WORD.findall(text))])
    for file in (*sorted(files), *sorted(_ROOT.glob("*.so"))):
        digest.update(_digest(file))
    return digest.hexdigest()[:16]


def source_files(modules: Iterable[str]) -> set[Path]:
    """Files of zoo that modules need: their own, what those import, and of the models they name."""
    waiting = [inner for name in modules for inner in _inside(name)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and name != "zoo" and not name.startswith(_ASIDE):
            found.add(name)
            waiting += _needs(name)
    return {_modules()[name] for name in found}


@functools.cache
def _modules() -> dict[str, Path]:
    """Name of every module of zoo -> its file."""
    names = {}
    for file in _ROOT.rglob("*.py"):
        parts = file.relative_to(_ROOT.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


@functools.cache
def _model_names() -> dict[str, str]:
    """Registered name of every model -> its module."""
    return {
        model: name
        for name, file in _modules().items()
        if name.startswith("zoo.models.")
        for model in _MODEL.findall(file.read_text(encoding="utf-8"))
    }


def _inside(name: str) -> list[str]:
    """A module, or all modules of a package."""
    return [other for other in _modules() if other == name or other.startswith(name + ".")]


def _named(words: Iterable[str]) -> Iterator[str]:
    """Modules of the classes and registered models among some words."""
    for word in set(words):
        if word in _model_names():
            yield _model_names()[word]
        elif word.startswith("zoo."):
            yield from _defining(word)


def _defining(path: str) -> Iterator[str]:
    """The module of something that is found under a path, such as ``zoo.tasks.Segmentation``."""
    if path in _modules():
        yield path
        return
    module = getattr(locate(path), "__module__", None)
    if module in _modules():
        yield module


@functools.cache
def _needs(name: str) -> tuple[str, ...]:
    """Modules of zoo that a module imports, and those of models that it names."""
    needs: set[str] = set()
    for node in ast.walk(ast.parse(_modules()[name].read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                needs.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("zoo"):
                needs.add(module)
                for alias in names:
                    needs.update(_defining(f"{module}.{alias.name}"))
            case ast.Constant(value=str(text)):
                needs.update(_named([text]))
    return tuple(sorted(needs & _modules().keys()))


@functools.cache
def _digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()
