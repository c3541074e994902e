"""What proofs measured, kept in a folder: a JSON file and figures for each system, and one page."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.errors import ZooError
from zoo.plots import measured_bars
from zoo.proofs.base import Inequality
from zoo.runs import write_atomically

_HEAD = """\
# Results of the proofs

<!-- Written by `python -m zoo.prove --all` from the files in that folder. -->

Each proof measures a paper's mechanism against the paper's own baseline, small enough for two CPU
cores; `recipes/<family>/<system>/proof.yaml` says how. `python -m zoo.prove SYSTEM` runs one again,
`python -m zoo.prove SYSTEM --record` also keeps its result here.
"""


@dataclass
class Result:
    """What came out of one proof.

    Attributes:
        claim: the paper's, in a sentence.
        inequalities: what must hold.
        seconds: that all its measurements took.
    """

    claim: str
    inequalities: list[Inequality]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all inequalities do."""
        return all(inequality.holds for inequality in self.inequalities)


def record(system: str, results: Sequence[Result], folder: Path) -> None:
    """Keep a system's results in ``folder`` instead of those kept before.

    Args:
        system: ``family/name``.
        results: one for each claim.
        folder: gets ``family/name.json`` and ``family/name-<number>.png`` for each claim.
    """
    file = folder / f"{system}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob(f"{file.stem}-[0-9].png"):
        old.unlink()
    for number, result in enumerate(results):
        measured_bars(
            result.claim,
            [(i.left, i.measured, i.relation, i.threshold, i.holds) for i in result.inequalities],
        ).savefig(file.with_name(f"{file.stem}-{number}.png"))
    content = {
        "system": system,
        "pytorch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "proofs": [asdict(result) for result in results],
    }
    write_atomically(file, json.dumps(content, indent=1).encode())


def write_page(page: Path) -> None:
    """Write ``page`` from all results in the folder beside it that has its name.

    Raises:
        ZooError: if a file there is no result.
    """
    folder = page.with_suffix("")
    systems = [_read(file) for file in sorted(folder.glob("*/*.json"))]
    held = [[result.holds for result in results] for _, results in systems]
    parts = [
        _HEAD,
        f"{sum(map(sum, held))} of {sum(map(len, held))} claims of {len(systems)} systems hold.\n",
    ]
    for content, results in systems:
        parts += _section(content, results, folder)
    write_atomically(page, "\n".join(parts).encode())


def _read(file: Path) -> tuple[dict[str, Any], list[Result]]:
    try:
        content = json.loads(file.read_text())
        results = [
            Result(**proof | {"inequalities": [Inequality(**i) for i in proof["inequalities"]]})
            for proof in content["proofs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(
            f"{file} is no result of a proof ({error!r}): delete it, and measure again with "
            "zoo prove SYSTEM --record"
        ) from error
    return content, results


def _section(content: dict[str, Any], results: list[Result], folder: Path) -> Iterable[str]:
    system = content["system"]
    yield f"## {system}\n"
    yield f"PyTorch {content['pytorch']}, {content['machine']}, threads: {content['threads']}.\n"
    for number, result in enumerate(results):
        figure = f"{folder.name}/{system}-{number}.png"
        yield f"**{result.claim}** ({result.seconds:.0f} s)\n"
        yield "| must hold | measured | verdict |"
        yield "| --- | ---: | --- |"
        for i in result.inequalities:
            yield f"| `{i.text}` | {i.measured:.6g} | {verdict(i.holds)} |"
        yield f"\n![{result.claim}]({figure})\n"


def verdict(holds: bool) -> str:
    """In a word."""
    return "holds" if holds else "FAILS"
