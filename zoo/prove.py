"""``python -m zoo.prove SYSTEM`` or ``--all``: check papers' claims on a small scale.

Measures what ``recipes/<family>/<system>/proof.yaml`` lists and prints claim, measured value,
threshold and verdict. Exit code 1 if an inequality does not hold. ``--record`` also keeps the
result in ``docs/results/`` and writes the page ``docs/results.md`` anew; so does ``--all``, after
each system.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser

from zoo.cli import quiet, read_yaml
from zoo.command import command
from zoo.errors import ZooError, suggest
from zoo.list import recipes_folder
from zoo.proofs.base import Proof, check
from zoo.proofs.results import Result, record, verdict, write_page
from zoo.recipe_errors import explain
from zoo.show import print_table, say


@command
def main(argv: list[str]) -> int:
    """Run one system's proofs, or all."""
    parser = argparse.ArgumentParser(
        prog="zoo prove", allow_abbrev=False, description="Check a paper's claim on a small scale."
    )
    parser.add_argument("system", nargs="?", help="such as vmamba, or vision/vmamba")
    parser.add_argument("--all", action="store_true", help="every system; records the results")
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep it in docs/results and docs/results.md",
    )
    arguments = parser.parse_args(argv)
    if (arguments.system is None) != arguments.all:
        raise ZooError("which proof? usage: zoo prove SYSTEM, or zoo prove --all")
    quiet()
    files = sorted(recipes_folder().glob("*/*/proof.yaml"))
    if arguments.system is not None:
        files = [_find(arguments.system, files)]
    page = recipes_folder().parent / "docs" / "results.md"
    holds = True
    for file in files:
        results = prove(file)
        holds = holds and all(result.holds for result in results)
        if arguments.all or arguments.record:
            record(_system(file), results, page.with_suffix(""))
            write_page(page)
            say(f"recorded in {page}")
    return 0 if holds else 1


def prove(file: Path) -> list[Result]:
    """Run the proofs of a file, printing as it goes."""
    system = _system(file)
    results = []
    for proof in read_proofs(file):
        say(f"\n{system}: {proof.claim}")
        started = time.monotonic()
        measured = {}
        for name, measurement in proof.measurements.items():
            measured[name] = measurement.measure()
            say(f"  {name}: " + ", ".join(f"{k} {v:.6g}" for k, v in measured[name].items()))
        inequalities = [check(text, measured) for text in proof.must_hold]
        results.append(Result(proof.claim, inequalities, time.monotonic() - started))
        print_table(
            "holds" if results[-1].holds else "DOES NOT HOLD",
            ("must hold", "measured", "threshold", "verdict"),
            [
                (i.text, f"{i.measured:.6g}", f"{i.relation} {i.threshold:.6g}", verdict(i.holds))
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


def _system(file: Path) -> str:
    return "/".join(file.parts[-3:-1])


def _find(system: str, files: list[Path]) -> Path:
    names = {_system(file): file for file in files}
    found = [file for name, file in names.items() if system in (name, name.rpartition("/")[2])]
    if len(found) != 1:
        short = [name.rpartition("/")[2] for name in names]
        raise ZooError(f"no proof for {system!r}; {suggest(system, short)}")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
