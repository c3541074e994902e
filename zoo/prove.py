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
from pathlib import Path

from zoo.command import command
from zoo.errors import ZooError, suggest
from zoo.recipes import all_recipes, read_yaml
from zoo.show import say

#: Where ``--record`` writes, with a folder of the same name beside it.
PAGE = Path("docs/results.md")


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
    files = [path for name, path in all_recipes().items() if name.endswith("/proof")]
    if arguments.system is not None:
        files = [_find(arguments.system, files)]
    for file in files:
        read_yaml(file)
    recorded = arguments.all or arguments.record
    seeds = None if arguments.seeds is None else _seeds(arguments.seeds)

    # all that needs no import is right
    from zoo.cli import quiet
    from zoo.proofs.base import SEEDS
    from zoo.proofs.results import record, write_page
    from zoo.proofs.run import prove, read_proofs

    quiet()
    seeds = seeds or (SEEDS if recorded else SEEDS[:1])
    hold = True
    for file in files:
        proven = [prove(proof, _system(file), seeds, arguments.anew) for proof in read_proofs(file)]
        hold = hold and all(result.all_hold for _, _, result in proven)
        if recorded:
            record(_system(file), *zip(*proven, strict=True), PAGE.with_suffix(""))
            write_page(PAGE)
            say(f"recorded in {PAGE}")
    return 0 if hold else 1


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
