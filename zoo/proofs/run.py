"""Proofs read from their files, measured and judged, with what is printed on the way."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from zoo.command import Interrupted
from zoo.errors import ZooError
from zoo.proofs import kept
from zoo.proofs.base import Measured, Proof
from zoo.proofs.results import Result, judge, spread
from zoo.recipe_errors import explain
from zoo.recipes import read_yaml
from zoo.show import print_table, say


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
