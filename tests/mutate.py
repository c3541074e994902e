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
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
import yaml

from tests import fingerprints
from tests.mutations import Mutant, mutants
from tests.patching import NotInPlace, functions_of, learn, patch
from tests.test_house import imports, modules
from zoo.models._catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
SURVIVORS = ROOT / "tests" / "survivors.yaml"
RECORD = ROOT / "docs" / "mutations.md"
LIMIT = 0.05
CONFORMANCE = "tests/models/test_conformance.py"
#: Tests of the conformance suite about matters that no change of a formula touches.
SLOW = ("compile", "export", "int8", "bfloat16", "autocast", "adapters")
QUIET = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


@dataclass
class Guards:
    """What notices a fault in a file.

    Attributes:
        cases: files of fingerprints.
        functions: files of tests, perhaps with ``::test``.
        suite: parts of the names of the conformance tests that belong to it.
    """

    cases: list[Path]
    functions: list[str]
    suite: list[tuple[str, ...]] = field(default_factory=list)

    def holds(self, item: pytest.Item) -> bool:
        """Whether a test belongs to them."""
        name = item.nodeid
        if name.startswith(CONFORMANCE) and CONFORMANCE not in self.functions:
            return any(all(word in name for word in part) for part in self.suite) and not any(
                word in name for word in SLOW
            )
        return any(
            name == f or name.startswith((f"{f}::", f"{f}[", f"{f}/")) for f in self.functions
        )


def guards(file: Path) -> Guards:
    """The guards of a source file by its place."""
    inner = file.relative_to("zoo")
    beside, name = Path("tests") / inner.parent, inner.stem.lstrip("_")
    stems = {path.stem.lstrip("_") for path in file.parent.glob("*.py")} - {name}
    tests = sorted(beside.glob("test_*.py"))
    functions = [str(t) for t in tests if t.stem.removeprefix("test_") not in stems]
    for own in (beside / f"{inner.stem}.yaml", beside / f"{name}.yaml"):
        if own.exists():
            models = [e.name for e in catalogue().values() if e.module == module_of(file)]
            suite = [(f"{own.parent.name}-{own.stem}",), *(("declared_count", m) for m in models)]
            return Guards([own], functions, suite)
    above = dependents(module_of(file))
    package = module_of(file).rpartition(".")[0]
    users = {
        module.rpartition(".")[2].lstrip("_")
        for module in above
        if module.startswith(f"{package}.")
    }
    functions = [str(t) for t in tests if str(t) in functions or t.stem[len("test_") :] in users]
    shared = sorted(Path("tests").glob("*/**/*.yaml"))
    return Guards([path for path in shared if reaches(path, above)], functions)


def dependents(module: str) -> set[str]:
    """A module of zoo, and those that import it, directly or not."""
    found, more = {module}, {module}
    graph = {name: set(imports(file)) for name, file in modules().items()}
    while more:
        more = {name for name, targets in graph.items() if targets & found} - found
        found |= more
    return found


def reaches(path: Path, above: set[str]) -> bool:
    """Whether a case of a file of fingerprints can execute one of these modules."""
    for case in fingerprints.load(path).values():
        entry = catalogue().get(case.model)
        places = {
            entry.module if entry else case.model.partition(":")[0],
            case.call.partition(":")[0],
        }
        if places & above or any(place.startswith("tests.") for place in places):
            return True
    return False


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
        items = [name for name, item in self.items.items() if kept.holds(item)]
        living = changes
        for names in (cases, items):
            if living:
                self.measure(names)
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

    def measure(self, names: list[str]) -> None:
        """Run guards on the files as they are, if that was not done yet."""
        new = [name for name in names if name not in self.seen]
        if not new:
            return
        found = fork(lambda: self._measure(new), 3600)
        if found is None:
            raise Broken("the guards broke down on the file as it is")
        for name in found["modules"]:
            if not name.startswith(("tests", "test_", "conftest")):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        for name, (seconds, lines) in found["seen"].items():
            seen = {file: set(numbers) for file, numbers in lines.items()}
            self.seen[name] = Seen(seconds, seen)
        if found["faults"]:
            raise Broken(f"fails as it is: {found['faults'][0]}")

    def _measure(self, names: list[str]) -> dict[str, Any]:
        seen, faults = {}, []
        files = {str(ROOT / file) for file in self.files}
        for name in names:
            with tracing(files) as lines:
                began = time.process_time()
                passes = self.passes([name])
                seconds = time.process_time() - began
            seen[name] = seconds, {file: sorted(numbers) for file, numbers in lines.items()}
            if not passes:
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

    def survives(
        self,
        file: Path,
        tree: ast.Module,
        mutant: Mutant,
        names: list[str],
        functions: list[FunctionType],
    ) -> bool:
        """Whether none of these guards that executes the changed line notices."""
        path, lines = str(ROOT / file), set(mutant.lines)
        hit = [n for n in names if (found := self.seen[n].lines.get(path)) and is_hit(lines, found)]
        hit.sort(key=lambda name: self.seen[name].seconds)

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


def module_of(file: Path) -> str:
    """A source file's module."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


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
        tests.update(dict.fromkeys(session.guards(file).functions))
    code = pytest.main([*QUIET, *tests], plugins=[session])
    return int(session.failed or code not in (0, 5))


if __name__ == "__main__":
    sys.exit(main())
