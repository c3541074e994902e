"""What the bench says: tables on the screen, a JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zoo.bench.bounds import Bounds
from zoo.bench.models import ModelRow
from zoo.bench.rows import Growth, Row, Setting
from zoo.ops import _library

_PACKAGES = ("ssm-zoo", "torch", "mambapy", "mamba-ssm", "causal-conv1d", "transformers")


def environment(setting: Setting, load: float) -> dict[str, Any]:
    """Hardware, versions and settings; ``load``: processes that were running before."""
    cuda = setting.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": setting.threads,
        "load_average": load,
        "cpu_capability": _library.unavailable.get("cpu") or torch.ops.zoo.cpu_capability(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "versions": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
        "seconds_per_measurement": setting.seconds,
    }


def write_json(
    path: Path,
    where: dict[str, Any],
    bounds: Bounds,
    rows: Iterable[Row],
    growths: Iterable[Growth],
    models: Iterable[ModelRow],
) -> None:
    """Everything that was measured."""
    result = {
        "environment": where,
        "bounds": asdict(bounds),
        "ops": [asdict(row) for row in rows],
        "growth": [asdict(growth) for growth in growths],
        "models": [asdict(row) for row in models],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def print_bounds(console: Console, where: dict[str, Any], bounds: Bounds) -> None:
    """What was measured where."""
    console.print(
        f"{where['device']}, {where['threads']} threads, CPU kernels: {where['cpu_capability']}, "
        f"load by others: {where['load_average']:.1f}"
    )
    rates = {size: size / seconds / 1e9 for size, seconds in bounds.copy.items()}
    largest = max(rates)
    console.print(
        f"copy: {rates[largest]:.1f} GB/s over {_bytes(largest)}, at most "
        f"{max(rates.values()):.1f} GB/s in the cache; "
        f"matrix product: {bounds.matmul_flops / 1e9:.0f} GFLOP/s, "
        f"PyTorch's exp: {bounds.exponentials / 1e9:.2f} G/s (float32)\n"
    )


def print_rows(console: Console, op: str, rows: list[Row]) -> None:
    """One table for an op."""
    peers = list(dict.fromkeys(name for row in rows for name in row.ratios))
    sizes = " x ".join(name for name, size in rows[0].sizes.items() if type(size) is int)
    table = _table(op, sizes, "dtype", "pass", "time", "of bound", "peak memory", "error",
                   *(f"{name} takes" for name in peers))  # fmt: skip
    for row in rows:
        peak = "-"
        if row.peak_bytes is not None:
            peak = f"{row.peak_bytes / row.input_bytes:.2f} x input"
        ratios = [f"{row.ratios[name]:.2f} x" if name in row.ratios else "" for name in peers]
        table.add_row(
            row.case,
            row.dtype,
            row.direction,
            format_time(row.seconds),
            f"{row.fraction_of_bound:.0%} ({row.bound_by})",
            peak,
            f"{row.error:.0e}",
            *ratios,
        )
    _print(console, table)


def print_growth(console: Console, growths: list[Growth]) -> None:
    """Time at each length, and the exponent."""
    lengths = growths[0].lengths
    table = _table("growth with length", "op", "case", *map(str, lengths), "exponent")
    for growth in growths:
        times = map(format_time, growth.seconds)
        case = f"{growth.case}, {growth.direction}"
        table.add_row(growth.op, case, *times, f"{growth.exponent:.2f}")
    _print(console, table)


def print_models(console: Console, rows: list[ModelRow]) -> None:
    """Time of a step, and where it goes."""
    table = _table("models", "model", "time", "peers", "share of the time")
    for row in rows:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row.shares.items())
        peers = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in row.ratios.items())
        table.add_row(f"{row.model}, {row.what}", format_time(row.seconds), peers, shares)
    _print(console, table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="",
                  box=SIMPLE_HEAD, show_edge=False)  # fmt: skip
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _print(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def format_time(seconds: float) -> str:
    """In the unit that suits it."""
    for size, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
