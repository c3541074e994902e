"""What proofs measured, kept in a folder: a JSON file and figures for each system, and one page."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from zoo.atomic import write_atomically
from zoo.errors import ZooError
from zoo.plots.proofs import Curve, Pictures, claim_figure
from zoo.plots.style import rendered
from zoo.proofs.base import SEEDS, Inequality, Measured, Proof, check

_HEAD = """\
# Results of the proofs

<!-- Written by `python -m zoo.prove --all` from the files in that folder. -->

Each proof measures a paper's mechanism against the paper's own baseline, small enough for two CPU
cores; `recipes/<family>/<system>/proof.yaml` says how. `python -m zoo.prove SYSTEM` runs one again,
`python -m zoo.prove SYSTEM --record` measures with three seeds and keeps the result here.

A seed moves everything that is drawn: weights, made data, batches, sampled tokens. A claim
**holds** if each of its inequalities holds with each of three seeds or more; with fewer it is
measured, no more. Measured values are means over the seeds, in parentheses from the least to the
greatest. In figures, lines are means over the seeds and shaded areas go from the least to the
greatest; pictures are those of the first seed.
"""


@dataclass
class Judged:
    """An inequality with what was measured for it, one entry for each seed."""

    text: str
    left: str
    relation: str
    measured: list[float]
    threshold: list[float]
    holds: list[bool]


@dataclass
class Result:
    """What came out of one proof.

    Attributes:
        claim: the paper's, in a sentence.
        seeds: that it was measured with.
        inequalities: what must hold.
        seconds: that all measurements took, for each seed.
        measurements: measurement -> value -> one number for each seed; empty in results that older
            versions wrote.
    """

    claim: str
    seeds: list[int]
    inequalities: list[Judged]
    seconds: list[float]
    measurements: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def all_hold(self) -> bool:
        """Whether all inequalities do with all seeds that were tried."""
        return all(all(inequality.holds) for inequality in self.inequalities)

    @property
    def holds(self) -> bool:
        """Whether all inequalities do, with as many seeds as a verdict needs."""
        return self.all_hold and len(self.seeds) >= len(SEEDS)

    @property
    def verdict(self) -> str:
        """In a few words."""
        if not self.all_hold:
            return "FAILS"
        if self.holds:
            return "holds"
        return f"measured with {len(self.seeds)} seed{'s'[: len(self.seeds) - 1]}"


def judge(proof: Proof, runs: Mapping[int, Mapping[str, Measured]], seconds: list[float]) -> Result:
    """Check what must hold.

    Args:
        proof: with the inequalities.
        runs: seed -> name -> what was measured.
        seconds: for each seed.
    """
    values = {seed: {name: m.values for name, m in run.items()} for seed, run in runs.items()}
    first = next(iter(values.values()))
    return Result(
        proof.claim,
        list(runs),
        [_judged([check(text, run) for run in values.values()]) for text in proof.must_hold],
        seconds,
        {
            name: {value: [run[name][value] for run in values.values()] for value in first[name]}
            for name in proof.measurements
        },
    )


def _judged(checked: Sequence[Inequality]) -> Judged:
    one = checked[0]
    columns = ([getattr(i, name) for i in checked] for name in ("measured", "threshold", "holds"))
    return Judged(one.text, one.left, one.relation, *columns)  # type: ignore[arg-type]


def record(
    system: str,
    proofs: Sequence[Proof],
    runs: Sequence[Mapping[int, Mapping[str, Measured]]],
    results: Sequence[Result],
    folder: Path,
) -> None:
    """Keep a system's results in ``folder`` instead of those kept before.

    Args:
        system: ``family/name``.
        proofs, runs, results: for each claim; see :func:`judge`.
        folder: gets ``family/name.json``, and ``family/name-<number>.png`` for claims that are
            drawn.
    """
    file = folder / f"{system}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob(f"{file.stem}-[0-9].png"):
        old.unlink()
    for number, (proof, seeds) in enumerate(zip(proofs, runs, strict=True)):
        figure = draw(proof, list(seeds.values()))
        if figure is not None:
            picture = Image.fromarray(rendered(figure)).quantize()  # a third of the bytes
            picture.save(file.with_name(f"{file.stem}-{number}.png"), optimize=True)
    content = {
        "system": system,
        "pytorch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "proofs": [asdict(result) for result in results],
    }
    write_atomically(file, _to_json(content).encode())


def draw(proof: Proof, runs: Sequence[Mapping[str, Measured]]) -> Figure | None:
    """Figure of a claim.

    Args:
        proof: the claim.
        runs: of each seed what was measured, by name.
    """
    curves: dict[str, list[list[Curve]]] = {}
    pictures: dict[str, list[Pictures]] = {}
    for name in proof.measurements:
        label = proof.label(name)  # several may have the same
        for seed, run in zip(curves.setdefault(label, [[] for _ in runs]), runs, strict=True):
            seed += run[name].curves
        pictures.setdefault(label, []).extend(runs[0][name].pictures)
    return claim_figure(proof.claim, curves, pictures, proof.show)


def _to_json(content: Any) -> str:
    """JSON with lists of numbers on one line."""
    text = json.dumps(content, indent=1)
    numbers = re.compile(r"\[\s*([^][{}\"]*?)\s*\]")
    return numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write_page(page: Path) -> None:
    """Write ``page`` from all results in the folder beside it that has its name.

    Raises:
        ZooError: if a file there is no result.
    """
    folder = page.with_suffix("")
    systems = [_read(file) for file in sorted(folder.glob("*/*.json"))]
    claims = [result for _, results in systems for result in results]
    counts = [
        f"{sum(result.holds for result in claims)} of {len(claims)} claims of {len(systems)} "
        f"systems hold with three seeds, {sum(not result.all_hold for result in claims)} fail"
    ]
    if few := sum(result.all_hold and not result.holds for result in claims):
        counts.append(f", {few} were measured with fewer seeds")
    parts = [_HEAD, "".join(counts) + ".\n"]
    parts += ["| system | claim | measured | verdict | |", "| --- | --- | --- | --- | --- |"]
    parts += [row for content, results in systems for row in _rows(content, results, folder)]
    for content, results in systems:
        parts += ["", *_section(content, results, folder)]
    write_atomically(page, ("\n".join(parts) + "\n").encode())


def _read(file: Path) -> tuple[dict[str, Any], list[Result]]:
    try:
        content = json.loads(file.read_text())
        results = [
            Result(**proof | {"inequalities": [Judged(**i) for i in proof["inequalities"]]})
            for proof in content["proofs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(
            f"{file} is no result of a proof ({error!r}): delete it, and measure again with "
            "zoo prove SYSTEM --record"
        ) from error
    return content, results


def _figures(content: dict[str, Any], results: Sequence[Result], folder: Path) -> list[str | None]:
    """Path of each claim's figure from the page, where there is one."""
    names = [f"{content['system']}-{number}.png" for number in range(len(results))]
    return [f"{folder.name}/{name}" if (folder / name).is_file() else None for name in names]


def _rows(content: dict[str, Any], results: Sequence[Result], folder: Path) -> Iterator[str]:
    """The system's lines of the first table."""
    system, figures = content["system"], _figures(content, results, folder)
    drawn = next((figure for figure in figures if figure), None)
    anchor = system.replace("/", "")
    link = f"[{system}](#{anchor})"
    thumbnail = f'<a href="#{anchor}"><img src="{drawn}" width="160" alt=""></a>' if drawn else ""
    for number, result in enumerate(results):
        first = result.inequalities[0]
        cells = [
            "" if number else link,
            result.claim,
            f"`{first.left}` {spread(first.measured)} {first.relation} {spread(first.threshold)}",
            _bold(result.verdict),
            "" if number else thumbnail,
        ]
        yield f"| {' | '.join(cells)} |"


def _section(content: dict[str, Any], results: Sequence[Result], folder: Path) -> Iterator[str]:
    system = content["system"]
    yield f"## {system}\n"
    yield (
        f"[What it is](systems/{system}.md). PyTorch {content['pytorch']}, {content['machine']}, "
        f"threads: {content['threads']}.\n"
    )
    for result, figure in zip(results, _figures(content, results, folder), strict=True):
        seeds = ", ".join(map(str, result.seeds))
        times = spread(result.seconds, ".0f")
        yield f"**{result.claim}**\n"
        yield f"{_bold(result.verdict)}; seeds {seeds}; {times} s each.\n"
        yield "| must hold | measured | verdict |"
        yield "| --- | ---: | --- |"
        for i in result.inequalities:
            yield f"| `{i.text}` | {spread(i.measured)} | {_of_seeds(i, result.seeds)} |"
        yield ""
        if figure:
            yield f"![{result.claim}]({figure})\n"


def _of_seeds(inequality: Judged, seeds: Sequence[int]) -> str:
    failed = [seed for seed, holds in zip(seeds, inequality.holds, strict=True) if not holds]
    if not failed:
        return "holds"
    return f"**FAILS** with seed {', '.join(map(str, failed))}"


def _bold(verdict: str) -> str:
    """A failure must not be overlooked."""
    return f"**{verdict}**" if verdict == "FAILS" else verdict


def spread(values: Sequence[float], digits: str = ".4g") -> str:
    """Mean, and the least and the greatest if they differ: ``0.52 (0.49 to 0.55)``."""
    mean = format(sum(values) / len(values), digits)
    ends = [format(end, digits) for end in (min(values), max(values))]
    return mean if ends[0] == ends[1] else f"{mean} ({' to '.join(ends)})"
