"""Run cases of all domains, and tell what was found; exit code 1 if anything was."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz._runner import domains, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: 0)")
    parser.add_argument("--cases", type=int, default=200, help="in all, dealt out over the domains")
    parser.add_argument("--domain", action="append", help="only this one; may be given again")
    parser.add_argument("--only", type=int, help="only this case of the domain")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that a case may take")
    options = parser.parse_args()
    known = domains()
    names = options.domain or known
    for name in names:
        if name not in known:
            parser.error(f"there is no domain '{name}': {', '.join(known)}")
    if options.only is not None and len(names) != 1:
        parser.error("--only needs one --domain")

    found = 0
    for place, name in enumerate(names):
        start = time.monotonic()
        cases = range(place, options.cases, len(names))
        numbers = [options.only] if options.only is not None else list(range(len(cases)))
        here = 0
        for finding in run(f"tests.fuzz.{name}", options.seed, numbers, options.timeout):
            here += 1
            print(
                f"{name}, case {finding.case}: {finding.what}\n  again: python -m tests.fuzz "
                f"--domain {name} --seed {options.seed} --only {finding.case}",
                flush=True,
            )
        seconds = time.monotonic() - start
        print(f"{name}: {len(numbers)} cases, {here} findings, {seconds:.0f} s", flush=True)
        found += here
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
