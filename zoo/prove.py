"""``python -m zoo.prove SYSTEM`` or ``--all``: check papers' claims on a small scale.

Measures what ``recipes/<family>/<system>/proof.yaml`` lists and prints claim, measured value,
threshold and verdict. Exit code 1 if an inequality does not hold. ``--all`` also writes
``docs/results.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from zoo.cli import quiet, read_yaml
from zoo.command import command
from zoo.errors import ZooError
from zoo.list import recipes_folder
from zoo.plots import measured_bars
from zoo.proofs import Inequality, Proof, check
from zoo.recipe_errors import explain
from zoo.runs import write_atomically
from zoo.show import print_table, say


@dataclass
class Result:
    """What came out of one proof."""

    system: str
    claim: str
    inequalities: list[Inequality]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all inequalities do."""
        return all(inequality.holds for inequality in self.inequalities)


@command
def main(argv: list[str]) -> int:
    """Run one system's proofs, or all."""
    parser = argparse.ArgumentParser(
        prog="zoo prove", allow_abbrev=False, description="Check a paper's claim on a small scale."
    )
    parser.add_argument("system", nargs="?", help="such as vmamba, or vision/vmamba")
    parser.add_argument("--all", action="store_true", help="every system; writes docs/results.md")
    arguments = parser.parse_args(argv)
    if (arguments.system is None) != arguments.all:
        raise ZooError("which proof? usage: zoo prove SYSTEM, or zoo prove --all")
    quiet()
    files = sorted(recipes_folder().glob("*/*/proof.yaml"))
    if arguments.system is not None:
        files = [_find(arguments.system, files)]
    results = [result for file in files for result in prove(file)]
    if arguments.all:
        _write_page(results, recipes_folder().parent / "docs")
    return 0 if all(result.holds for result in results) else 1


def prove(file: Path) -> list[Result]:
    """Run the proofs of a file, printing as it goes."""
    system = "/".join(file.parts[-3:-1])
    results = []
    for proof in read_proofs(file):
        say(f"\n{system}: {proof.claim}")
        started = time.monotonic()
        measured = {}
        for name, measurement in proof.measurements.items():
            measured[name] = measurement.measure()
            say(f"  {name}: " + ", ".join(f"{k} {v:.6g}" for k, v in measured[name].items()))
        inequalities = [check(text, measured) for text in proof.must_hold]
        results.append(Result(system, proof.claim, inequalities, time.monotonic() - started))
        print_table(
            "holds" if results[-1].holds else "DOES NOT HOLD",
            ("must hold", "measured", "threshold", "verdict"),
            [
                (i.text, f"{i.measured:.6g}", f"{i.relation} {i.threshold:.6g}", _verdict(i.holds))
                for i in inequalities
            ],
            right=("measured", "threshold"),
        )
    return results


def read_proofs(file: Path) -> list[Proof]:
    """Read and check a ``proof.yaml``; nothing is measured yet."""
    content = read_yaml(file, file)
    if set(content) != {"proofs"}:
        raise ZooError(f"{file}: expected one key, proofs, with a list; found {', '.join(content)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--proofs", type=list[Proof], required=True)
    try:
        config = parser.parse_object(content)
    except argparse.ArgumentError as error:
        raise ZooError(explain(str(error), str(file), (), {"proofs": Proof})) from error
    return parser.instantiate(config).proofs


def _find(system: str, files: list[Path]) -> Path:
    names = {"/".join(file.parts[-3:-1]): file for file in files}
    found = [file for name, file in names.items() if system in (name, name.rpartition("/")[2])]
    if len(found) != 1:
        short = [name.rpartition("/")[2] for name in names]
        close = get_close_matches(system, short, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(short)}"
        raise ZooError(f"no proof for {system!r}; {hint}")
    return found[0]


def _verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def _write_page(results: list[Result], docs: Path) -> None:
    """``docs/results.md`` with a figure for each proof."""
    lines = [
        "# Results of the proofs",
        "",
        "Written by `python -m zoo.prove --all`. Each proof measures a paper's mechanism against",
        "its own baseline, small enough for two CPU cores; `recipes/<family>/<system>/proof.yaml`",
        f"says how. PyTorch {torch.__version__}, {torch.get_num_threads()} threads.",
        "",
    ]
    system = None
    for number, result in enumerate(results):
        if result.system != system:
            system = result.system
            lines += [f"## {system}", ""]
        figure = Path("results", f"{system.replace('/', '-')}-{number}.png")
        (docs / figure).parent.mkdir(parents=True, exist_ok=True)
        measured_bars(
            result.claim,
            [(i.left, i.measured, i.relation, i.threshold, i.holds) for i in result.inequalities],
        ).savefig(docs / figure)
        lines += [
            f"**{result.claim}** ({result.seconds:.0f} s)",
            "",
            "| must hold | measured | verdict |",
            "| --- | ---: | --- |",
            *(
                f"| `{i.text}` | {i.measured:.6g} | {_verdict(i.holds)} |"
                for i in result.inequalities
            ),
            "",
            f"![{result.claim}]({figure.as_posix()})",
            "",
        ]
    write_atomically(docs / "results.md", "\n".join(lines).encode())
    say(f"results are in {docs / 'results.md'}")


if __name__ == "__main__":
    sys.exit(main())
