"""The command: arguments, measurements in order, results."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console

from zoo.bench import report
from zoo.bench.bounds import measure_bounds
from zoo.bench.models import MODELS, ModelRow, measure_model
from zoo.bench.page import write_page
from zoo.bench.plot import plot_growth, plot_models
from zoo.bench.rows import Growth, Row, Setting, measure_growth, measure_row
from zoo.bench.table import CPU, GPU, GROWTH, QUICK
from zoo.bench.token_pruning import PRUNED, measure_pruned
from zoo.command import command
from zoo.errors import ZooError

_LENGTHS = tuple(4**n for n in range(4, 10))  # 256 to 262144
_QUICK_LENGTHS = (256, 512, 1024)
_WIDTH = 160  # of the tables in a file


@command
def main(argv: list[str]) -> int:
    """Measure, print, write."""
    arguments = _parse(argv)
    if arguments.page and not arguments.json:
        write_page(arguments.page)
        return 0
    load = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    setting = Setting(arguments.device, arguments.threads, seconds=0.03 if quick else 1.0)
    cases = QUICK if quick else GPU if arguments.device == "cuda" else CPU
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)

    with console.status("what the machine can do"):
        bounds = measure_bounds(setting.device, setting.threads, setting.seconds / 4)
    where = report.environment(setting, load)
    report.print_bounds(console, where, bounds)

    rows: list[Row] = []
    for op, group in groupby(cases, key=lambda case: case.op):
        if op not in arguments.ops:
            continue
        of_op = []
        for case in group:
            with console.status(f"{op} {case.label()}"):
                of_op.append(measure_row(case, setting, bounds))
        report.print_rows(console, op, of_op)
        rows += of_op

    growths: list[Growth] = []
    for case in GROWTH:
        if case.op in arguments.ops:
            with console.status(f"growth of {case.op}"):
                lengths = _QUICK_LENGTHS if quick else _LENGTHS
                growths.append(measure_growth(case, lengths, setting))
    if growths:
        report.print_growth(console, growths)

    models: list[ModelRow] = []
    if "models" in arguments.ops:
        for model in MODELS[:1] if quick else MODELS:
            with console.status(f"{model.model} {model.what}"):
                models.append(measure_model(model, setting))
        for name in () if quick else PRUNED:
            with console.status(f"{name}, pruned"):
                models.append(measure_pruned(name, setting))
        report.print_models(console, models)

    if arguments.json:
        report.write_json(arguments.json, where, bounds, rows, growths, models)
        console.print(f"written: {arguments.json}")
    if arguments.plot:
        to = (arguments.plot, arguments.device, where["device"])
        if growths:
            console.print(f"written: {plot_growth(growths, *to)}")
        if models:
            console.print(f"written: {plot_models(models, *to)}")
    if arguments.page:
        write_page(arguments.page)
        console.print(f"written: {arguments.page}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    ops = [*dict.fromkeys(case.op for case in CPU), "models"]
    parser = argparse.ArgumentParser(
        prog="zoo bench", description="Time the ops against their peers and the machine's limits."
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(ops)}; all if none")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw growth and shares in this folder"
    )
    parser.add_argument("--page", type=Path, metavar="FILE",
                        help="write a Markdown page from all results in the folder of its name; "
                        "without --json nothing is measured")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    arguments = parser.parse_args(argv)
    for op in arguments.ops:
        if op not in ops:
            raise ZooError(f"zoo bench: there is no op {op!r}; expected of {', '.join(ops)}")
    arguments.ops = arguments.ops or ops
    if arguments.device not in ("cpu", "cuda"):
        raise ZooError(f"zoo bench: --device must be cpu or cuda, got {arguments.device!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ZooError("zoo bench: --device cuda, but PyTorch finds no GPU; use --device cpu")
    if arguments.threads < 1:
        raise ZooError(f"zoo bench: --threads must be at least 1, got {arguments.threads}")
    for option, folder in (
        ("--json", arguments.json and arguments.json.absolute().parent),
        ("--plot", arguments.plot),
        ("--page", arguments.page and arguments.page.absolute().parent),
    ):
        if folder and not folder.is_dir():
            raise ZooError(f"zoo bench: {option}: there is no folder {folder}; make it first")
    return arguments
