"""``python -m zoo.predict FILES... --checkpoint RUN|CHECKPOINT``; with published weights ``--model
NAME`` (a classifier) or ``--recipe RECIPE``, and ``--pretrained FILE``.

Applies a trained model to files or to all in a folder; writes ``predictions.csv`` and, per file, a
picture of the result. A file that cannot be predicted is a row with its error, and the exit code is
then 1; 2 if none could be.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import allow_class_option
from zoo.atomic import part_folder, place
from zoo.command import command
from zoo.errors import ZooError
from zoo.recipes import find_recipe, read_recipe
from zoo.runs.folder import resolve_checkpoint
from zoo.show import print_table, progress, say

if TYPE_CHECKING:
    from zoo.predictor import Predictor

SHOWN = 20


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo predict",
        allow_abbrev=False,
        description="Apply a trained model to files of your own.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="files or folders, as the task takes them"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="run's folder, or .ckpt file"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="instead: an image classifier, see zoo list"
    )
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="instead: a recipe that says model and task"
    )
    parser.add_argument(
        "--pretrained", metavar="FILE", help="and its weights: file, folder, URL, hf://"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="of --model (default 1000)")
    parser.add_argument(
        "--device", help="such as cpu or cuda:1 (default: the first GPU, where there is one)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="new folder (default predictions/<time>)"
    )
    allow_class_option(parser)
    return parser


@command
def main(argv: list[str]) -> int:
    """Predict as the command line says; 1 if some inputs failed."""
    arguments = _arguments().parse_args(argv)
    output = arguments.output or Path("predictions", time.strftime("%Y-%m-%d_%H-%M-%S"))
    if arguments.output is not None and output.exists():
        raise ZooError(f"--output: {output} exists already, expected the name of a new folder")
    source = _check_model(arguments)

    # all that needs no import is right
    from zoo.cli import quiet
    from zoo.devices import usable_device

    quiet()
    usable_device(arguments.device)
    predictor = _load(arguments, source)
    task = predictor.task
    inputs = task.find_inputs(arguments.files)
    with part_folder("--output", output) as part:
        rows = task.predict_files(progress(inputs, "predict"), predictor.data, part)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        _write_table(rows, columns, part / "predictions.csv")
        output = place(part, output)
    failed = sum("error" in row for row in rows)
    shown = columns[:3] + (["error"] if failed and "error" not in columns[:3] else [])
    print_table(
        f"{len(rows):,} file(s)" + (f", the first {SHOWN}" if len(rows) > SHOWN else ""),
        shown,
        [[row.get(column, "") for column in shown] for row in rows[:SHOWN]],
    )
    say(f"predictions.csv and pictures are in {output}")
    if failed:
        print(f"error: {failed} of {len(rows)} failed, see the column error", file=sys.stderr)
    return 1 if failed else 0


def _write_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _check_model(arguments: argparse.Namespace) -> Path | None:
    """The checkpoint or the recipe that was given, if either was."""
    given = [arguments.checkpoint, arguments.model, arguments.recipe]
    if sum(value is not None for value in given) != 1:
        raise ZooError(
            "which model? give --checkpoint RUN, or --model NAME --pretrained FILE, or --recipe "
            "RECIPE --pretrained FILE"
        )
    if arguments.checkpoint is not None:
        if arguments.pretrained is not None:
            raise ZooError("--checkpoint has weights: leave --pretrained out, or give --recipe")
        return resolve_checkpoint(arguments.checkpoint)
    if arguments.pretrained is None:
        name = f"--model {arguments.model}" if arguments.model else f"--recipe {arguments.recipe}"
        raise ZooError(f"{name}: its weights are missing, add --pretrained FILE")
    if arguments.recipe is None:
        return None
    path = find_recipe(arguments.recipe)
    read_recipe(path, [])
    return path


def _load(arguments: argparse.Namespace, source: Path | None) -> Predictor:
    from zoo.predictor import classifier, load

    if arguments.model is not None:
        return classifier(
            arguments.model, arguments.pretrained, arguments.num_classes, arguments.device
        )
    return load(
        source,
        pretrained=arguments.pretrained,
        device=arguments.device,
        allowed=arguments.allow_class,
    )


if __name__ == "__main__":
    sys.exit(main())
