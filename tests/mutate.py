"""Which small faults in a model's file do its tests notice?

``python -m tests.mutate zoo/models/vision/vmamba.py [FILE ...]`` makes every change of
:mod:`tests.mutations` to a file, one at a time, and runs the tests that execute the changed line,
the quickest first, until one fails: the cases of fingerprints, then the test functions. At most
5 % may survive, each explained in ``tests/survivors.yaml``; otherwise the exit code is 1. Of a file
with many places ``--sample N`` changes N, drawn with ``--seed``; ``--record`` enters the counts in
``docs/mutations.md``.

The tests of ``zoo/models/<family>/<system>.py`` are ``tests/models/<family>/<system>.yaml``,
``test_<system>.py`` beside it, the folder's tests that bear no file's name, and the system's part
of the conformance suite. What several systems share is guarded by all files of fingerprints that
reach it and the test files at the same path below ``tests/``. ``--tests PATH ...`` names others,
YAML or Python, perhaps with ``::test``.

One process imports everything and collects the tests once for all files; each change runs in a
fork of it, where :mod:`tests.patching` gives the functions their changed code. Nothing on the disk
is touched.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
import yaml

from tests import fingerprints
from tests.guards import CONFORMANCE, ROOT, Guards, guards, is_of, module_of
from tests.mutations import Mutant, mutants
from tests.patching import NotInPlace, functions_of, learn, patch

SURVIVORS = ROOT / "tests" / "survivors.yaml"
RECORD = ROOT / "docs" / "mutations.md"
LIMIT = 0.05
#: Seconds of processor time for the tests of a file: the cheapest of those that can notice.
BUDGET = 40.0
QUIET = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


@dataclass
class Seen:
    """What one run of a guard took, and the lines that it executed, by file."""

    seconds: float
    lines: dict[str, set[int]]


class Session:
    """A pytest plugin that changes files instead of running the tests that are collected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.files: list[Path] = options.files
        self.known = yaml.safe_load(SURVIVORS.read_text(encoding="utf-8")) or {}
        #: Guard -> what was seen of it: "file.yaml:case", or the test's id.
        self.seen: dict[str, Seen] = {}
        self.items: dict[str, pytest.Item] = {}
        self.reports: list[pytest.TestReport] = []
        self.broken = False
        self.changed = self.alive = self.unexplained = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        for file in self.files:
            importlib.import_module(module_of(file))
            try:
                self.report(file)
            except Broken as broken:
                self.broken = True
                print(f"{file}: {broken}", flush=True)
        return True

    def guards(self, file: Path) -> Guards:
        chosen = self.options.tests
        if not chosen:
            return guards(file)
        cases = [Path(t) for t in chosen if t.endswith(".yaml")]
        return Guards(cases, [t for t in chosen if not t.endswith(".yaml")])

    def report(self, file: Path) -> None:
        """Change one file in all ways; print and count what survives."""
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        changes = mutants(tree, source)
        places = len(changes)
        if self.options.lines:
            first, _, last = self.options.lines.partition("-")
            changes = [m for m in changes if int(first) <= m.line <= int(last or first)]
        if self.options.sample and len(changes) > self.options.sample:
            draw = random.Random(f"{self.options.seed} {file}")
            chosen = sorted(draw.sample(range(len(changes)), self.options.sample))
            changes = [changes[i] for i in chosen]
        path = str(ROOT / file)
        kept = self.guards(file)
        cases = [f"{p}:{name}" for p in kept.cases for name in fingerprints.load(p)]
        suite = [name for name, item in self.items.items() if kept.in_suite(item)]
        groups = [(cases, True), (suite, True)]
        for place in (*kept.functions, *kept.near):
            names = [name for name in self.items if is_of(name, place)]
            groups.append((names, place in kept.functions))
        living = changes
        for names, own in groups:
            names = self.measure(names, own) if living else []
            if any(self.hit(path, m, names) for m in living):
                learn(path, ast.parse(source))
                functions = functions_of(path)
                living = [m for m in living if self.survives(file, tree, m, names, functions)]
        alive, unexplained = len(living), 0
        for mutant in living:
            reason = explanation(file, mutant, self.known)
            unexplained += reason is None
            mark = "explained" if reason else "SURVIVES "
            print(f"{mark} {file}:{mutant.line}: {mutant.text}\n    {mutant.change}", flush=True)
        share = alive / max(len(changes), 1)
        print(
            f"{file}: {places} places, {len(changes)} changed, {alive} survive ({share:.1%}), "
            f"{unexplained} unexplained",
            flush=True,
        )
        if self.options.record:
            record(file, places, len(changes), alive, unexplained)
        self.changed += len(changes)
        self.alive += alive
        self.unexplained += unexplained

    @property
    def failed(self) -> bool:
        """Whether too much survives, or something without a reason."""
        return self.broken or self.unexplained > 0 or self.alive > LIMIT * self.changed

    def measure(self, names: list[str], own: bool) -> list[str]:
        """Run guards on the files as they are, if that was not done yet.

        Args:
            names: of the guards.
            own: of the file's own place, where they must pass; of others, what comes after
                twice :data:`BUDGET` is left out.

        Returns:
            Those that pass.
        """
        new = [name for name in names if name not in self.seen]
        found = fork(lambda: self._measure(new, own), 3600) if new else None
        if new and found is None:
            if not own:
                return []
            raise Broken("the guards broke down on the file as it is")
        if found is not None:
            self._learn(found, strict=own)
        return [name for name in names if name in self.seen]

    def _learn(self, found: dict[str, Any], strict: bool) -> None:
        for name in found["modules"]:
            if not name.startswith(("tests", "test_", "conftest")):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        for name, (seconds, lines) in found["seen"].items():
            seen = {file: set(numbers) for file, numbers in lines.items()}
            self.seen[name] = Seen(seconds, seen)
        if found["faults"] and strict:
            raise Broken(f"fails as it is: {found['faults'][0]}")

    def _measure(self, names: list[str], own: bool) -> dict[str, Any]:
        seen, faults = {}, []
        files = {str(ROOT / file) for file in self.files}
        until = time.process_time() + 2 * BUDGET  # watched, all is slower
        for name in names:
            if not own and time.process_time() > until:
                break
            with tracing(files) as lines:
                began = time.process_time()
                passes = self.passes([name])
                seconds = time.process_time() - began
            if passes:
                seen[name] = seconds, {file: sorted(numbers) for file, numbers in lines.items()}
            else:
                faults.append(name)
        return {"seen": seen, "faults": faults, "modules": list(sys.modules)}

    def passes(self, names: list[str]) -> bool:
        """Whether guards pass; the first that fails ends it."""
        import torch

        items = [name for name in names if name in self.items]
        for name in names:
            torch.manual_seed(0)
            if name in self.items:
                item, self.reports = self.items[name], []
                place = items.index(name)
                after = self.items[items[place + 1]] if place + 1 < len(items) else None
                item.ihook.pytest_runtest_protocol(item=item, nextitem=after)
                if any(report.failed for report in self.reports):
                    return False
            else:
                path, _, case = name.rpartition(":")
                if fingerprints.load(Path(path))[case].differences():
                    return False
        return True

    def hit(self, path: str, mutant: Mutant, names: list[str]) -> list[str]:
        """The cheapest of these guards that execute the changed line."""
        lines = set(mutant.lines)
        hit = [n for n in names if (found := self.seen[n].lines.get(path)) and is_hit(lines, found)]
        hit.sort(key=lambda name: self.seen[name].seconds)
        spent = list(accumulate(self.seen[name].seconds for name in hit))
        return [name for name, sum_ in zip(hit, spent, strict=True) if sum_ < BUDGET] or hit[:1]

    def survives(
        self,
        file: Path,
        tree: ast.Module,
        mutant: Mutant,
        names: list[str],
        functions: list[FunctionType],
    ) -> bool:
        """Whether none of these guards that executes the changed line notices."""
        path = str(ROOT / file)
        hit = self.hit(path, mutant, names)

        def attempt() -> bool:
            mutant.apply()
            module = sys.modules[module_of(file)]
            try:
                patch(module, path, tree, functions, at_import=not mutant.lines)
            except NotInPlace as reason:
                print(f"{file}:{mutant.line}: {reason}", file=sys.stderr)
                return True
            return self.passes(hit)

        seconds = sum(self.seen[name].seconds for name in hit)
        return not hit or fork(attempt, 30 + 3 * seconds) is True


def is_hit(lines: set[int], executed: set[int]) -> bool:
    """Whether a change of lines can matter; without lines, to all who execute the file."""
    return not lines or bool(lines & executed)


class Broken(Exception):
    """The guards do not pass on the file as it is."""


@contextlib.contextmanager
def tracing(files: set[str]) -> Iterator[dict[str, set[int]]]:
    """Lines of files that are executed meanwhile."""
    lines: dict[str, set[int]] = {}

    def line(frame: FrameType, event: str, _: Any) -> Any:
        lines[frame.f_code.co_filename].add(frame.f_lineno)
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in files:
            return None
        lines.setdefault(name, set()).add(frame.f_lineno)
        return line

    sys.settrace(call)
    try:
        yield lines
    finally:
        sys.settrace(None)


def fork(work: Callable[[], Any], seconds: float) -> Any:
    """What a function returns in a fork; None if it raises, dies or takes longer than seconds."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        child = os.fork()
        if child == 0:
            os.setsid()
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            if not os.environ.get("MUTATE_VERBOSE"):
                os.dup2(silence, 2)
            try:
                # of processor time, so that a busy machine kills nothing; a deadlock ends too
                signal.setitimer(signal.ITIMER_PROF, seconds)
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                signal.alarm(3600)
                os.chdir(ROOT)
                answer.write_text(json.dumps(work()))
            except BaseException:  # whatever a changed module does ends here
                if os.environ.get("MUTATE_VERBOSE"):
                    sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started, if anything
        return json.loads(answer.read_text()) if answer.exists() and answer.stat().st_size else None


def explanation(file: Path, mutant: Mutant, known: dict[str, list[dict[str, str]]]) -> str | None:
    """The reason that stands in the list for a survivor."""
    for entry in known.get(str(file), []):
        if entry["line"] == mutant.text and entry.get("change", mutant.change) == mutant.change:
            return entry["reason"]
    return None


def record(file: Path, places: int, tried: int, alive: int, unexplained: int) -> None:
    """Enter a file's counts in the table of the record, in place of older ones."""
    text = RECORD.read_text(encoding="utf-8")
    head, bar, table = text.partition("| --- |")
    rule, *rows = table.splitlines()
    kept = {row.split("|")[1].strip(): row for row in rows}
    counts = (places, tried, tried - alive, alive - unexplained, unexplained)
    kept[f"`{file}`"] = f"| `{file}` | {' | '.join(map(str, counts))} |"
    lines = [head + bar + rule, *(kept[name] for name in sorted(kept))]
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Change the files and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", help="what guards the files")
    parser.add_argument("--lines", help="change these lines alone, such as 20-60")
    parser.add_argument("--sample", type=int, metavar="N", help="change N places of a file")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the sample")
    parser.add_argument("--record", action="store_true", help="enter counts in docs/mutations.md")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    session = Session(options)
    tests = {CONFORMANCE: None}
    for file in options.files:
        kept = session.guards(file)
        tests.update(dict.fromkeys((*kept.functions, *kept.near)))
    code = pytest.main([*QUIET, *tests], plugins=[session])
    return int(session.failed or code not in (0, 5))


if __name__ == "__main__":
    sys.exit(main())
