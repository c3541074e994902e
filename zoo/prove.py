"""``python -m zoo.prove SYSTEM`` or ``--all``: check papers' claims on a small scale.

Measures what ``recipes/<family>/<system>/proof.yaml`` lists, with one seed or several, and prints
claim, measured values, thresholds and verdict. Exit code 1 if an inequality does not hold with each
seed. ``--record`` also keeps the result in ``docs/results/`` and writes the page
``docs/results.md`` anew; so does ``--all``, after each system.

Every measurement is kept as soon as it is there (in ``$ZOO_CACHE/proofs``), until settings, recipe
or code change; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from zoo.cli import quiet
from zoo.command import Interrupted, command
from zoo.errors import ZooError, suggest
from zoo.list import recipes_folder
from zoo.proofs import kept
from zoo.proofs.base import SEEDS, Measured, Proof
from zoo.proofs.results import Result, judge, record, spread, write_page
from zoo.recipe_errors import explain
from zoo.recipes import read_yaml
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
    parser.add_argument(
        "--seeds",
        help="such as 0,1,2, which a verdict in the record needs and --record and --all use; "
        "otherwise 0",
    )
    parser.add_argument("--anew", action="store_true", help="measure again what is kept")
    arguments = parser.parse_args(argv)
    if (arguments.system is None) != arguments.all:
        raise ZooError("which proof? usage: zoo prove SYSTEM, or zoo prove --all")
    quiet()
    files = sorted(recipes_folder().glob("*/*/proof.yaml"))
    if arguments.system is not None:
        files = [_find(arguments.system, files)]
    page = recipes_folder().parent / "docs" / "results.md"
    recorded = arguments.all or arguments.record
    seeds: Sequence[int] = SEEDS if recorded else SEEDS[:1]
    if arguments.seeds is not None:
        seeds = _seeds(arguments.seeds)
    hold = True
    for file in files:
        proven = [prove(proof, _system(file), seeds, arguments.anew) for proof in read_proofs(file)]
        hold = hold and all(result.all_hold for _, _, result in proven)
        if recorded:
            record(_system(file), *zip(*proven, strict=True), page.with_suffix(""))
            write_page(page)
            say(f"recorded in {page}")
    return 0 if hold else 1


class Proven(NamedTuple):
    """A proof, what was measured with each seed, and what follows from it."""

    proof: Proof
    runs: dict[int, dict[str, Measured]]
    result: Result


def prove(proof: Proof, system: str, seeds: Sequence[int], anew: bool = False) -> Proven:
    """Measure and judge one claim, printing as it goes.

    Args:
        proof: one of :func:`read_proofs`.
        system: whose.
        seeds: to measure with.
        anew: measure again what is kept.
    """
    say(f"\n{system}: {proof.claim}")
    runs: dict[int, dict[str, Measured]] = {}
    seconds = []
    for seed in seeds:
        run, spent = {}, 0.0
        for name, measurement in proof.measurements.items():
            if len(seeds) > 1 and not measurement.seeded and runs:
                run[name] = runs[seeds[0]][name]
                continue
            try:
                run[name], took, found = kept.measure(measurement, seed, anew)
            except (KeyboardInterrupt, SystemExit):  # Lightning ends a stopped training by exiting
                raise Interrupted("stopped; the same command goes on from here") from None
            spent += took
            values = ", ".join(f"{k} {v:.6g}" for k, v in run[name].values.items())
            which = f"seed {seed}, " if measurement.seeded else ""
            say(f"  {name} ({which}{'kept' if found else f'{took:.0f} s'}): {values}")
        runs[seed] = run
        seconds.append(spent)
    result = judge(proof, runs, seconds)
    print_table(
        result.verdict,
        ("must hold", "measured", "threshold", "verdict"),
        [
            (
                i.text,
                spread(i.measured),
                f"{i.relation} {spread(i.threshold)}",
                "holds" if all(i.holds) else "FAILS",
            )
            for i in result.inequalities
        ],
        right=("measured", "threshold"),
    )
    return Proven(proof, runs, result)


def read_proofs(file: Path) -> list[Proof]:
    """Read and check a ``proof.yaml``; nothing is measured yet."""
    content = read_yaml(file)
    if set(content) != {"proofs"}:
        raise ZooError(f"{file}: expected one key, proofs, with a list; found {', '.join(content)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--proofs", type=list[Proof], required=True)
    try:
        config = parser.parse_object(content)
    except argparse.ArgumentError as error:
        raise ZooError(explain(str(error), str(file), (), {"proofs": Proof})) from error
    proofs: list[Proof] = parser.instantiate(config).proofs
    for proof, given in zip(proofs, config.proofs, strict=True):
        for name, measurement in proof.measurements.items():
            measurement.settings = _plain(given.measurements[name])
    return proofs


def _plain(settings: Any) -> Any:
    """Without the types of jsonargparse."""
    return settings.as_dict() if isinstance(settings, Namespace) else settings


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ZooError(f"--seeds is {text!r}, expected different numbers such as 0,1,2")
    return tuple(map(int, parts))


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
