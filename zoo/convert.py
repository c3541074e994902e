"""Turn a checkpoint from anywhere into a safetensors file that says what it is.

python -m zoo.convert SOURCE OUT.safetensors [--model NAME [--args num_classes=10 ...]] [--key KEY]
[--half]

With --model the names become those of that model of ours, and every one is checked against it; then
`zoo.convert.load_converted("OUT.safetensors")` builds the model again and loads it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import blaming, read_value
from zoo.command import command
from zoo.errors import ZooError
from zoo.models.registry import create_model, model_info

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("zoo")


def convert(
    source: str,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    arguments: dict[str, Any] | None = None,
    key: str | None = None,
    half: bool = False,
) -> dict[str, Tensor]:
    """Write a checkpoint as safetensors; the tensors that were written.

    The header's field ``zoo`` is JSON with the model's name and arguments, the source and the
    SHA-256 of its files.

    Args:
        source, key: see :func:`zoo.checkpoints.read_state_dict`.
        out: file to write, ending in ``.safetensors``.
        model: one of :func:`zoo.list_models`; the weights take its names and must fit it
            completely. Default: the names stay.
        arguments: of the model, where the weights are of another size than the named one.
        half: store floating-point tensors as float16, but for those that would overflow.

    Raises:
        ZooError: if the source cannot be read, does not fit the model, or cannot be written.
    """
    arguments = arguments or {}
    if Path(out).suffix != ".safetensors":
        raise ZooError(f"'{out}' must end in .safetensors")
    if arguments and model is None:
        raise ZooError("--args are those of a model: give --model as well")
    if model is not None:
        model_info(model)  # an unknown one is said to be so at once

    from zoo.checkpoints import load_pretrained, read_state_dict, save_state_dict
    from zoo.checkpoints.sources import file_digest, locate

    located = locate(source)
    if model is None:
        tensors = read_state_dict(source, key=key, mmap=True)
    else:
        with blaming("--model or --args"):
            built = create_model(model, **arguments)
        report = load_pretrained(built, source, key=key)
        if report.head or report.unexpected:
            raise ZooError(
                f"{source} has a classifier of another size than {model}: say it with --args "
                "num_classes=..."
            )
        tensors = built.state_dict()
    if half:
        tensors = {name: _to_half(name, tensor) for name, tensor in tensors.items()}
    note = {
        "model": model,
        "arguments": arguments,
        "source": located.name,
        "sha256": {file.name: file_digest(file) for file in located.files},
    }
    save_state_dict(tensors, out, {"zoo": json.dumps(note)})
    return tensors


def load_converted(path: str | os.PathLike[str]) -> nn.Module:
    """The model that :func:`convert` wrote with ``model=``, built again and loaded.

    Raises:
        ZooError: if the file does not say which model it is of.
    """
    from zoo.checkpoints import read_metadata

    try:
        note = json.loads(read_metadata(Path(path)).get("zoo", "{}"))
        name, arguments = note.get("model"), note.get("arguments", {})
        known = isinstance(name, str) and isinstance(arguments, dict)
    except (ValueError, AttributeError, RecursionError):
        known = False
    if not known:
        raise ZooError(f"{path} does not say which model it is of: write it with --model NAME")
    with blaming(f"{path}: the model's arguments"):
        return create_model(name, **{**arguments, "pretrained": os.fspath(path)})


def _to_half(name: str, tensor: Tensor) -> Tensor:
    import torch

    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return tensor
    half = tensor.half()
    if not torch.equal(half.isinf(), tensor.isinf()):
        log.warning("%s stays %s: it has values beyond float16", name, tensor.dtype)
        return tensor
    return half


def _arguments(pairs: Sequence[str]) -> dict[str, Any]:
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ZooError(f"--args {pair}: expected name=value, such as num_classes=10")
        arguments[name] = read_value(f"--args {pair}", value)
    return arguments


@command
def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="zoo convert", description=__doc__)
    parser.add_argument("source", help="file, folder, URL or hf://owner/name[/file][@revision]")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--model", help="model of the zoo whose names the weights take")
    parser.add_argument("--args", nargs="+", default=[], metavar="NAME=VALUE", help="its arguments")
    parser.add_argument("--key", help="which part of the file; 'ema' for averaged weights")
    parser.add_argument("--half", action="store_true", help="store as float16")
    given = parser.parse_args(argv)
    tensors = convert(
        given.source,
        given.out,
        model=given.model,
        arguments=_arguments(given.args),
        key=given.key,
        half=given.half,
    )
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{given.out}: {len(tensors)} tensors, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main(None))
