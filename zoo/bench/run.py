"""Measurements in order, results."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import groupby

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
from zoo.errors import ZooError

_LENGTHS = tuple(4**n for n in range(4, 10))  # 256 to 262144
_QUICK_LENGTHS = (256, 512, 1024)
_WIDTH = 160  # of the tables in a file


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write, as :mod:`zoo.bench.arguments` has read it."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ZooError("zoo bench: --device cuda, but PyTorch finds no GPU; use --device cpu")
    if arguments.page and not arguments.json:
        write_page(arguments.page)
        return 0
    load = os.getloadavg()[0]
    threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    quick = arguments.quick
    setting = Setting(arguments.device, threads, seconds=0.03 if quick else 1.0)
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
