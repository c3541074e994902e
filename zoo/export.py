"""``python -m zoo.export RUN --to FORMAT --output PATH``: a trained model for other programs.

``onnx``: a program for any runtime of ONNX; our ops become its own. ``torch_export``: a program for
PyTorch (``torch.export.load``) with our kernels; import zoo.ops first. Both are what
``zoo predict`` computes with the network for ``--input``, and are compared with it before they are
in place. ``safetensors``: the weights. ``hf``: a folder as the Hugging Face hub has them, with a
card made from the run; ``--push OWNER/NAME`` puts it there, ``zoo.load("hf://OWNER/NAME")`` takes
it from there.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import allow_class_option
from zoo.atomic import part_folder
from zoo.command import command
from zoo.errors import ZooError, check_choice
from zoo.show import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.predictor import Predictor

#: Format -> how the name of what is written ends.
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "hf": ""}
#: Those of them that compute.
PROGRAMS = ("onnx", "torch_export")
#: A program may differ from the model by this share of its greatest number.
TOLERANCE = 1e-4


@dataclass
class Call:
    """A call of a network: what a program is made from.

    Attributes:
        module: the network.
        inputs: its arguments by name.
    """

    module: nn.Module
    inputs: dict[str, Any]

    def expected(self) -> list[Tensor]:
        """Its answer."""
        import torch

        with torch.no_grad():
            return _tensors(self.module(**self.inputs))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo export",
        allow_abbrev=False,
        description="Write a trained model for other programs.",
    )
    parser.add_argument(
        "source",
        metavar="RUN",
        help="run's folder, or .ckpt file; with --pretrained an image classifier or a recipe",
    )
    parser.add_argument("--to", required=True, choices=FORMATS, help="format")
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="new file")
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="of a program: files as zoo predict takes them; it is for inputs of their sizes",
    )
    parser.add_argument(
        "--batch", default="1", metavar="N", help="of a program: inputs at a time, or any"
    )
    parser.add_argument(
        "--pretrained", metavar="FILE", help="of a program: published weights, not a run's"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="of a classifier's name")
    parser.add_argument("--push", metavar="OWNER/NAME", help="of hf: also put it on the hub")
    allow_class_option(parser)
    return parser


@command
def main(argv: list[str]) -> int:
    """Export as the command line says."""
    given = _arguments().parse_args(argv)
    if given.output.exists():
        raise ZooError(f"--output: {given.output} exists already, expected a new name")
    if given.output.suffix != FORMATS[given.to] and given.to != "hf":
        raise ZooError(f"--output: {given.output} must end in {FORMATS[given.to]}")
    if given.push and given.to != "hf":
        raise ZooError(f"--push is for --to hf, not {given.to}")
    (_export_program if given.to in PROGRAMS else _export_weights)(given)
    return 0


def _export_program(given: argparse.Namespace) -> None:
    if not given.input:
        raise ZooError(
            f"--to {given.to} needs --input FILE, as zoo predict takes it: the program is for "
            "inputs of its size"
        )
    if given.batch != "any" and not (given.batch.isdigit() and int(given.batch)):
        raise ZooError(f"--batch is {given.batch}, expected a number of 1 or more, or any")

    # all that needs no import is right
    from zoo.predictor import load

    predictor = load(
        given.source,
        pretrained=given.pretrained,
        num_classes=given.num_classes,
        device="cpu",
        allowed=given.allow_class,
    )
    batch = None if given.batch == "any" else int(given.batch)
    difference = export(predictor, given.to, given.output, given.input, batch=batch)
    told = "not compared: onnxruntime is not installed"
    if difference is not None:
        told = f"differs from the model by {difference:.1e} of its greatest number"
    say(f"{given.output}: {given.to} of {given.source}, {told}")


def _export_weights(given: argparse.Namespace) -> None:
    if given.input or given.pretrained:
        raise ZooError(f"--input and --pretrained are for {' and '.join(PROGRAMS)}: leave them out")

    from zoo.runs import read_checkpoint
    from zoo.runs.folder import resolve_checkpoint
    from zoo.runs.hub_folder import push, write_hub_folder, write_weights

    path = resolve_checkpoint(Path(given.source))
    checkpoint = read_checkpoint(path)
    if given.to == "safetensors":
        write_weights(checkpoint, given.output)
    else:
        write_hub_folder(checkpoint, path, given.output)
        if given.push:
            say(f"https://huggingface.co/{push(given.output, given.push)}")
    say(f"{given.output}: {given.to} of {path}")


def export(
    predictor: Predictor,
    to: str,
    output: Path,
    inputs: Sequence[Any],
    *,
    batch: int | None = 1,
) -> float | None:
    """Write what ``predictor`` computes with its network for ``inputs`` as a program.

    Args:
        predictor: on the CPU, see :func:`zoo.load`.
        to: "onnx" or "torch_export".
        output: file to write.
        inputs: as :meth:`zoo.predictor.Predictor.predict` takes them; the program is for inputs of
            their sizes.
        batch: so many of them at a time; None: any number, which must be the first dimension of all
            tensors.

    Returns:
        the greatest difference from the model in relation to its greatest number; None if there is
        no runtime to compare with (onnxruntime).

    Raises:
        ZooError: the network cannot become such a program, or answers differently.
    """
    check_choice("to", to, PROGRAMS)
    call = _with_batch(captured_call(predictor, inputs), batch or 2)
    with part_folder("--output", output) as part, _without_gradients(call.module):
        made = part / output.name
        program = _program(call, dynamic=batch is None)
        if to == "onnx":
            found = _write_onnx(program, call, made, _note(predictor))
        else:
            found = _write_torch(program, call, made)
        difference = None if found is None else _difference(found, call.expected())
        if difference is not None and not difference <= TOLERANCE:
            raise ZooError(
                f"the program's answer differs from the model's by {difference:.1e} of its "
                f"greatest number, expected {TOLERANCE:.0e} or less: it was not written"
            )
        for path in part.iterdir():  # the weights of a large program stand beside it
            path.rename(output.with_name(path.name))
    return difference


class _Captured(Exception):
    """The network was called."""


def captured_call(predictor: Predictor, inputs: Sequence[Any]) -> Call:
    """How the task calls its network first for what a user gives it.

    Raises:
        ZooError: it has none that a program can be made of, or does not take the inputs.
    """
    task = predictor.task
    module, heard = task.exported()
    owner, name = heard.__self__, heard.__name__  # type: ignore[attr-defined]
    calls: list[dict[str, Any]] = []

    def keep(*args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(heard).bind(*args, **kwargs)
        calls.append({name: x for name, x in bound.arguments.items() if x is not None})
        raise _Captured

    setattr(owner, name, keep)
    try:
        with contextlib.suppress(_Captured), tempfile.TemporaryDirectory() as folder:
            predictor.predict(*inputs, output=Path(folder, "out"))
    finally:
        delattr(owner, name)
    if not calls:
        raise ZooError(f"{type(task).__name__} did not call its network for these inputs")
    return Call(module.eval(), calls[0])


def _with_batch(call: Call, batch: int) -> Call:
    import torch
    from torch.utils._pytree import tree_map_only

    def repeated(t: Tensor) -> Tensor:
        return t.detach().clone().repeat(batch, *(1,) * (t.dim() - 1)) if t.dim() else t

    return Call(call.module, tree_map_only(torch.Tensor, repeated, call.inputs))


def _program(call: Call, dynamic: bool) -> Any:
    import torch
    from torch.utils._pytree import tree_map_only

    def shape(t: Tensor) -> dict[int, Any]:
        return {0: torch.export.Dim.DYNAMIC} if t.dim() else {}

    shapes = tree_map_only(torch.Tensor, shape, call.inputs) if dynamic else None
    with _tracing(), _blaming(type(call.module).__name__, "torch.export"):
        return torch.export.export(call.module, (), call.inputs, dynamic_shapes=shapes)


def _write_torch(program: Any, call: Call, path: Path) -> list[Tensor]:
    import torch

    with _blaming(type(call.module).__name__, "torch.export.save"):
        torch.export.save(program, path)
    with torch.no_grad():
        return _tensors(torch.export.load(path).module()(**call.inputs))


def _write_onnx(program: Any, call: Call, path: Path, note: dict[str, str]) -> list[Tensor] | None:
    import torch

    from zoo.ops.portable import decompositions, missing

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ZooError(f"--to onnx needs {error.name}: pip install 'ssm-zoo[onnx]'") from None
    without = missing(program)
    if without:
        raise ZooError(
            f"{type(call.module).__name__} uses {', '.join(without)}, which ONNX has nothing for: "
            "use --to torch_export"
        )
    with _tracing(), _blaming(type(call.module).__name__, "torch.onnx"):
        program = program.run_decompositions(decompositions())
        written = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        written.model.metadata_props.update(note)
        written.save(path)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = _tensors(call.inputs)
    names = [node.name for node in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def _note(predictor: Predictor) -> dict[str, str]:
    """What a user of the program must know of the model."""
    task, data = predictor.task, predictor.data
    note: dict[str, Any] = {"task": type(task).__name__}
    if task.class_names is not None:
        note["class_names"] = task.class_names
    for name in ("mean", "std"):
        value = getattr(data, name, None)
        if value is not None:
            note[name] = [float(x) for x in value] if hasattr(value, "__iter__") else float(value)
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in note.items()}


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise ZooError(
            f"the program answers {[list(t.shape) for t in found]}, the model "
            f"{[list(t.shape) for t in expected]}"
        )
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))
        for a, b in zip(found, expected, strict=True)
        if b.numel()
    )


def _tensors(value: Any) -> list[Tensor]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


@contextlib.contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """PyTorch would trace those of each recurrence as well."""
    learn = [p for p in module.parameters() if p.requires_grad]
    for p in learn:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learn:
            p.requires_grad_(True)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Without PyTorch's warnings about its own; with one form of attention, as the others' results
    lie in memory in another order, which a program would count on."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _blaming(model: str, by: str) -> Iterator[None]:
    """What PyTorch raises, in one line: it has dozens of kinds for a program that cannot be."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        while error.__cause__ is not None:  # what PyTorch says around it is about its own steps
            error = error.__cause__  # type: ignore[assignment]
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ZooError(f"{model} cannot be exported ({by}: {reason})") from error


if __name__ == "__main__":
    sys.exit(main())
