"""Settings of the registered models that no count of parameters shows: a norm's eps, a longest
input, a rate of learning, an activation.

``settings.yaml`` beside this holds a digest of those of every name. ``python -m tests.settings
show NAME`` prints what it is made of, ``write [NAME ...]`` enters names that are new or were
changed on purpose; all without memory for weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import zoo

FILE = Path(__file__).with_suffix(".yaml")
#: What is looked at in modules that are not ours, whose other attributes change with a library.
FOREIGN = ("eps", "variance_epsilon", "p", "drop_prob", "negative_slope", "num_groups", "dilation")
HEADER = "# Name -> digest of its settings, see tests/settings.py.\n"


def settings(model: nn.Module) -> list[str]:
    """One line for each setting of each module that can be written down."""
    lines = []
    for name, module in model.named_modules():
        ours = type(module).__module__.startswith("zoo.")
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or key == "training" or (not ours and key not in FOREIGN):
                continue
            lines += [f"{name}.{key} = {text}" for text in _written(value)]
        rates = getattr(module, "learning_rates", None)
        if rates is not None:
            lines += [f"{name}.learning_rates = {text}" for text in _written(rates())]
    return lines


def _written(value: Any) -> Iterator[str]:
    """Nothing for what has no text of its own, such as a tensor or a function."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        yield repr(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (f"{key}: {text}" for text in _written(item))
    elif isinstance(value, (list, tuple)):
        texts = [list(_written(item)) for item in value]
        if all(texts):
            yield str(texts)


def digest(model: nn.Module) -> str:
    """Sixteen characters that a change of any setting changes."""
    return hashlib.sha256("\n".join(settings(model)).encode()).hexdigest()[:16]


def known() -> dict[str, str]:
    """Digests by the names of the models."""
    return yaml.safe_load(FILE.read_text()) if FILE.exists() else {}


def build(name: str) -> nn.Module:
    """A registered model without memory."""
    with torch.device("meta"):
        return zoo.create_model(name)


def main() -> int:
    """Show the settings of a model, or enter digests."""
    parser = argparse.ArgumentParser(prog="python -m tests.settings", description=__doc__)
    parser.add_argument("what", choices=["show", "write"])
    parser.add_argument("names", nargs="*", help="of models; write: by default those without any")
    options = parser.parse_args()
    if options.what == "show":
        for name in options.names:
            print("\n".join(settings(build(name))))
        return 0
    found, names = known(), zoo.list_models()
    for name in options.names or [name for name in names if name not in found]:
        found[name] = digest(build(name))
    lines = [f"{name}: {found[name]}\n" for name in sorted(found) if name in names]
    FILE.write_text(HEADER + "".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
