"""Fingerprints: a dozen numbers that a model's arithmetic must give, whatever machine computes it.

A file ``tests/<tree>/<family>/<system>.yaml`` beside the tests of a system holds its cases. A case
builds a small model, fills it with weights *by a formula* (a hash of name and place, no generator),
runs a fixed input through it in float64 and compares projections and single elements of every
output, of the gradient of every input and of the gradient of all parameters with the numbers that
stand in the file. ::

    agreement: which reference vector, or repository@commit and class, the model was compared with,
      and how close it came; or "none published" and why.
    cases:
      gated:
        model: vmamba_tiny                  # a registered name, or module:Class, or module:function
        args: {dims: 8, depths: [1, 1]}     # {import: module:Name} stands for what YAML cannot say
        inputs:                             # keyword arguments of the call
          x: {shape: [2, 3, 40, 56]}        # floats in [-1, 1); low, high: other bounds
          tokens: {shape: [2, 9], below: 64}      # integers from 0 (low: from there)
          mask: {shape: [2, 9], chance: 0.7}      # True that often
          lengths: {value: [9, 5]}                # a tensor of these values
          boxes: {make: "tests.models.x:boxes"}   # what a function returns
          images: [{shape: [3, 4, 4]}, {shape: [3, 5, 6]}]      # nests of these
          mode: greedy                            # anything else is passed as it is
        call: forward_features              # a method; or module:function, called with the model
        train: true                         # in training mode, where that computes something else
        values: {"*.A_log": [0.5, 0.2]}     # offset and spread of entries that need care; buffers
        unused: {"*.bias": why its gradient is zero}     # an input is "input.x"
        no_gradient: why nothing can be differentiated
        float32: why a library falls to float32, which widens the tolerance to 1e-5
        numbers: ...                        # written by the command below

``python -m tests.fingerprints write FILE [CASE ...]`` computes the numbers of cases that have none,
and refuses a case that could not notice a fault: an output that is constant or not finite, a
parameter or an input without influence, a result that depends on the random generator, arithmetic
that falls to float32. ``check FILE [CASE ...]`` compares.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import zoo
from tests.formula import Refusal, bits, fill, uniform

TOLERANCE = 1e-9  # of the largest number of one tensor
FLOAT32_TOLERANCE = 1e-5
VANISHING = 1e-10  # of the largest gradient: as good as none


# Cases


@dataclass
class Case:
    """One model, one call of it, and the numbers it must give; see the module's text."""

    file: Path
    name: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    call: str = "__call__"
    train: bool = False
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    no_gradient: str = ""
    float32: str = ""
    numbers: dict[str, list[float]] | None = None

    def build(self) -> nn.Module:
        """The model as its constructor leaves it, in the default dtype."""
        args = {key: _resolve(value) for key, value in self.args.items()}
        if ":" in self.model:
            return named(self.model)(**args)
        return zoo.create_model(self.model, **args)

    def filled(self) -> nn.Module:
        """The model in float64 with its values by formula, in the mode of the case."""
        model = self.build().double()
        model._apply(lambda t: t.to(torch.complex128) if t.is_complex() else t)
        fill(model, self.values)
        return model.train(self.train)

    def arguments(self) -> dict[str, Any]:
        """The inputs, floats in the default dtype."""
        return {name: _input(name, spec) for name, spec in self.inputs.items()}

    def run(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Every tensor that the call returns, by its path."""
        if ":" in self.call:
            output = named(self.call)(model, **inputs)
        else:
            output = getattr(model, self.call)(**inputs)
        return dict(tensors("output", output))

    def measure(self, seed: int = 0, strict: bool = False) -> dict[str, list[float]]:
        """The numbers that the model gives now; ``strict`` raises a :class:`Refusal` where they
        would not notice a fault."""
        with _double(seed):
            model, inputs = self.filled(), self.arguments()
            floats = {
                name: t.requires_grad_(not self.no_gradient)
                for name, t in tensors("input", inputs)
                if t.is_floating_point()
            }
            with _no_float32() if strict and not self.float32 else contextlib.nullcontext():
                outputs = self.run(model, inputs)
            if not outputs:
                raise Refusal("the call returns no tensor")
            numbers: dict[str, list[float]] = {}
            for path, tensor in outputs.items():
                tensor = _real(tensor.detach())
                if strict:
                    _lively(path, tensor)
                numbers[f"{path} {tuple(tensor.shape)}"] = _project(path, tensor, len(outputs))
            if self.no_gradient:
                return numbers
            aims = {p: _real(t) for p, t in outputs.items() if t.requires_grad}
            if not aims:
                raise Refusal("no output has a gradient: state why under no_gradient")
            parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
            wanted = {**floats, **parameters}
            aim = sum(
                (t * uniform(f"cotangent of {p}", tuple(t.shape))).sum() for p, t in aims.items()
            )
            with _no_float32() if strict and not self.float32 else contextlib.nullcontext():
                found = torch.autograd.grad(aim, list(wanted.values()), allow_unused=True)
            grads = {
                name: torch.zeros_like(t) if g is None else _real(g)
                for (name, t), g in zip(wanted.items(), found, strict=True)
            }
            if strict:
                self._influences(grads)
            for name in floats:
                numbers[f"gradient of {name}"] = _project(name, grads[name], len(floats))
            if parameters:
                parts = [_project(f"gradient of {n}", grads[n], 0)[0] for n in parameters]
                numbers["gradient of parameters"] = [sum(parts)]
        return numbers

    def _influences(self, grads: dict[str, Tensor]) -> None:
        """Refuse parameters and inputs without influence for which no reason stands."""
        sizes = {name: float(g.abs().max()) if g.numel() else 0.0 for name, g in grads.items()}
        if not all(map(math.isfinite, sizes.values())):
            raise Refusal("a gradient is not finite")
        largest = max(sizes.values(), default=0.0)
        still = [name for name, size in sizes.items() if size <= VANISHING * largest]
        idle = [n for n in still if not any(fnmatch.fnmatchcase(n, p) for p in self.unused)]
        if idle:
            more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
            raise Refusal(
                f"no influence on the outputs: {', '.join(idle[:5])}{more}; let the case use them, "
                "or state the reason under unused"
            )
        for pattern in self.unused:
            if not fnmatch.filter(still, pattern):
                raise Refusal(f"nothing called {pattern} is unused: take it off the list")

    def differences(self) -> list[str]:
        """Where the model's numbers now differ from those in the file; empty if they agree."""
        if self.numbers is None:
            return [f"no numbers yet: python -m tests.fingerprints write {self.file} {self.name}"]
        return compare(self.measure(), self.numbers, self.tolerance)

    @property
    def tolerance(self) -> float:
        """Of the numbers of one tensor, relative to the largest."""
        return FLOAT32_TOLERANCE if self.float32 else TOLERANCE

    def written(self) -> dict[str, list[float]]:
        """Numbers fit for the file; a :class:`Refusal` if they would not notice a fault."""
        numbers = self.measure(0, strict=True)
        if compare(self.measure(1), numbers, self.tolerance):
            raise Refusal(
                "the numbers depend on the random generator: switch dropout off, and fill random "
                "buffers through values"
            )
        return numbers


def compare(
    now: dict[str, list[float]], expected: dict[str, list[float]], tolerance: float
) -> list[str]:
    """Where numbers differ by more than the tolerance."""
    if list(now) != list(expected):
        return [f"it gives {', '.join(now)}; expected {', '.join(expected)}"]
    faults = []
    for name, row in expected.items():
        scale = max(map(abs, row), default=0.0)
        pairs = zip(now[name], row, strict=False)
        worst = max((abs(a - b) for a, b in pairs), default=0.0)
        if len(now[name]) != len(row) or not worst <= tolerance * scale:
            faults.append(f"{name}: {now[name]}, expected {row}")
    return faults


def load(file: Path) -> dict[str, Case]:
    """The cases of a file, by name."""
    content = _parsed(file.read_text(encoding="utf-8"))
    if not str(content.get("agreement") or "").strip():
        raise Refusal(f"{file}: agreement must say what the model was compared with")
    known = {f.name for f in dataclasses.fields(Case)} - {"file", "name"}
    cases = {}
    for name, entry in content["cases"].items():
        if unknown := set(entry) - known:
            raise Refusal(f"{file}: {name}: no such key: {', '.join(sorted(unknown))}")
        cases[name] = Case(file, name, **entry)
    return cases


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def named(place: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def tensors(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nest of tuples, lists, mappings and dataclasses, with its path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors(f"{path}.{key}", part)
    elif isinstance(value, (tuple, list)):
        keys = getattr(value, "_fields", range(len(value)))
        for key, part in zip(keys, value, strict=True):
            yield from tensors(f"{path}.{key}", part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors(f"{path}.{f.name}", getattr(value, f.name))
    elif isinstance(value, (bool, int, float)) and path.startswith("output"):
        yield path, torch.tensor(value)
    elif not (value is None or path.startswith("input") or isinstance(value, str)):
        raise Refusal(
            f"{path} is a {type(value).__name__}: return tensors through a function in call"
        )


def _resolve(value: Any) -> Any:
    """An argument of the model with ``{import: module:Name}`` replaced by what it names."""
    if isinstance(value, dict):
        if set(value) == {"import"}:
            return named(value["import"])
        return {key: _resolve(part) for key, part in value.items()}
    return [_resolve(part) for part in value] if isinstance(value, list) else value


def _input(name: str, spec: Any) -> Any:
    """One input by its description; lists and other mappings are nests of them."""
    if isinstance(spec, list):
        return [_input(f"{name}.{i}", part) for i, part in enumerate(spec)]
    if not isinstance(spec, dict):
        return spec
    if "make" in spec:
        return named(spec["make"])()
    if "value" in spec:
        value = torch.tensor(spec["value"])
        return value.to(torch.get_default_dtype()) if value.is_floating_point() else value
    if "shape" not in spec:
        return {key: _input(f"{name}.{key}", part) for key, part in spec.items()}
    u = uniform(f"input {name}", tuple(spec["shape"]))  # [-1, 1)
    if "chance" in spec:
        return (u + 1) / 2 < spec["chance"]
    if "below" in spec:
        low = spec.get("low", 0)
        return (low + (u + 1) / 2 * (spec["below"] - low)).floor().long()
    low, high = spec.get("low", -1.0), spec.get("high", 1.0)
    return (low + (u + 1) / 2 * (high - low)).to(torch.get_default_dtype())


# Numbers


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _project(path: str, tensor: Tensor, tensors: int) -> list[float]:
    """A projection of a tensor, and single elements of it: more if it is the only one."""
    flat = tensor.detach().double().flatten()
    number = float((flat * uniform(f"projection of {path}", tuple(flat.shape))).sum())
    if tensors == 0 or not flat.numel():
        return [number]
    places = bits(f"places in {path}", 3 if tensors == 1 else 1).astype(np.int64) % flat.numel()
    return [number, *(float(flat[int(place)]) for place in places)]


def _lively(path: str, tensor: Tensor) -> None:
    """Refuse an output that is not finite, or of more than one element and constant."""
    flat = tensor.double().flatten()
    if not flat.isfinite().all():
        raise Refusal(f"{path} is not finite")
    if flat.numel() > 1 and float(flat.std()) <= 1e-6 * float(flat.abs().max()):
        raise Refusal(f"{path} is constant")


@contextlib.contextmanager
def _double(seed: int) -> Iterator[None]:
    """float64 as the default dtype, and the generator at a seed for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


class _no_float32(TorchDispatchMode):
    """Refuse arithmetic in float32 and below: its last digits differ between machines."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def look(value: Any) -> Any:
            low = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
            if isinstance(value, Tensor) and value.dtype in low:
                raise Refusal(f"{func} computes in {value.dtype} though the model is float64")
            return value

        tree_map(look, result)
        return result


# The command


def insert(text: str, case: str, numbers: dict[str, list[float]]) -> str:
    """The file's text with the numbers at the end of a case, in place of those that stood there."""
    lines = text.rstrip().split("\n")
    start = next(
        i for i, line in enumerate(lines) if re.match(rf"  {re.escape(case)}:\s*(#.*)?$", line)
    )
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith("   ")):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    body = lines[start:end]
    old = next((i for i, line in enumerate(body) if line.startswith("    numbers:")), len(body))
    new = [
        f'      "{key}": [{", ".join(f"{n:.12g}" for n in row)}]' for key, row in numbers.items()
    ]
    return "\n".join([*lines[:start], *body[:old], "    numbers:", *new, *lines[end:]]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the numbers of a file's cases."""
    parser = argparse.ArgumentParser(prog="python -m tests.fingerprints", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--force", action="store_true", help="write over numbers that differ")
    options = parser.parse_args(arguments)
    cases = load(options.file)
    failed = False
    for name in options.cases or cases:
        case = cases[name]
        try:
            if options.action == "write" and (case.numbers is None or options.force):
                new = case.written()
                text = insert(options.file.read_text(encoding="utf-8"), name, new)
                options.file.write_text(text, encoding="utf-8")
                print(f"{name}: written")
                continue
            faults = case.differences()
        except Refusal as refusal:
            faults = [str(refusal)]
        failed |= bool(faults)
        print(f"{name}: {'; '.join(faults) or 'agrees'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
