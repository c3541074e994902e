"""The documentation's page of results, written from the JSON files of the bench."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from zoo.bench.report import format_time
from zoo.errors import ZooError

_HEAD = """\
# Benchmarks

<!-- Written by `python -m zoo.bench --page docs/benchmarks.md` from the files in that folder. -->

Times are medians of one process, in which an op and its peers take turns; a peer's column says how
many times as long as the op it takes. *Of bound* is the time that the machine cannot be faster
than, over the time that the op takes: each input read and each output written once at the speed of
a copy of that size, or the counted arithmetic at the speed of a float32 matrix product, whichever
is longer. Both speeds are measured first. *Peak memory* is what a call takes beyond its inputs, in
multiples of them, and *error* the deviation of the forward pass from float64 on the same numbers.

To measure yours:

    python -m zoo.bench --json docs/benchmarks/mine.json --plot docs/benchmarks \\
        --page docs/benchmarks.md

`python -m zoo.bench selective_scan ssd` measures these alone, `--quick` takes seconds, and
`--device cuda` takes a GPU.
"""


def write_page(page: Path) -> None:
    """Write ``page`` from all JSON files in the folder beside it that has its name.

    Raises:
        ZooError: if there are none, or one is not the bench's.
    """
    folder = page.with_suffix("")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ZooError(f"zoo bench: --page: there is no JSON file in {folder}; measure with --json")
    parts = [_HEAD]
    for file in files:
        try:
            parts += _machine(json.loads(file.read_text()), folder)
        except (ValueError, KeyError, TypeError) as error:
            raise ZooError(
                f"zoo bench: --page: {file} is not a result of this version of the bench "
                f"({error!r}); measure again"
            ) from None
    page.write_text("\n".join(parts).rstrip() + "\n")


def _machine(result: dict[str, Any], folder: Path) -> Iterable[str]:
    where, bounds = result["environment"], result["bounds"]
    rates = [int(size) / seconds / 1e9 for size, seconds in bounds["copy"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    yield f"## {where['device']}\n"
    yield (
        f"{where['threads']} threads, CPU kernels {where['cpu_capability']}, Python "
        f"{where['python']}, {versions}. Copy {rates[-1]:.1f} GB/s in memory, at most "
        f"{max(rates):.1f} GB/s in the cache; matrix product {bounds['matmul_flops'] / 1e9:.0f} "
        f"GFLOP/s; PyTorch's exp {bounds['exponentials'] / 1e9:.2f} G/s. Load of the machine by "
        f"others before the run: {where['load_average']:.1f}.\n"
    )
    for op, rows in groupby(result["ops"], key=lambda row: row["op"]):
        yield f"### {op}\n"
        yield from _ops(list(rows))
    if result["growth"]:
        yield "### Growth with length\n"
        yield from _growth(result["growth"])
    if result["models"]:
        yield "### Models\n"
        yield from _models(result["models"])
    kind = "cpu" if where["cuda"] is None else "cuda"
    for name, text in (("growth", "Time against length"), ("models", "Where a model's time goes")):
        picture = folder / f"{name}-{kind}.png"
        if picture.exists():
            yield f"![{text}]({folder.name}/{picture.name})\n"


def _ops(rows: list[dict[str, Any]]) -> Iterable[str]:
    peers = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    sizes = " x ".join(name for name, size in rows[0]["sizes"].items() if type(size) is int)
    yield from _table(
        [sizes, "dtype", "pass", "time", "of bound", "peak memory", "error", *peers],
        [
            [
                row["case"],
                row["dtype"],
                row["direction"],
                format_time(row["seconds"]),
                f"{row['fraction_of_bound']:.0%} ({row['bound_by']})",
                "-" if row["peak_bytes"] is None
                else f"{row['peak_bytes'] / row['input_bytes']:.2f} x",
                f"{row['error']:.0e}",
                *(_ratio(row["ratios"].get(name)) for name in peers),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def _growth(growths: list[dict[str, Any]]) -> Iterable[str]:
    yield from _table(
        ["op", "case", *map(str, growths[0]["lengths"]), "exponent"],
        [
            [g["op"], f"{g['case']}, {g['direction']}", *map(format_time, g["seconds"]),
             f"{g['exponent']:.2f}"]
            for g in growths
        ],
    )  # fmt: skip


def _models(rows: list[dict[str, Any]]) -> Iterable[str]:
    yield from _table(
        ["model", "time", "peers", "share of the time"],
        [
            [
                f"{row['model']}, {row['what']}",
                format_time(row["seconds"]),
                ", ".join(f"{name} {ratio:.2f} x" for name, ratio in row["ratios"].items()),
                ", ".join(f"{name} {share:.0%}" for name, share in row["shares"].items()),
            ]
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""
