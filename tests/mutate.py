"""Which small faults in a model's file do its tests notice?

``python -m tests.mutate zoo/models/vision/vmamba.py [FILE ...]`` makes every change of
:mod:`tests.mutations` to a file, one at a time, and runs the tests that execute the changed line:
the cases of fingerprints first, then, while the change survives, the test functions. At most 5 %
may survive, each explained in ``tests/survivors.yaml``; otherwise the exit code is 1.

The tests of ``zoo/models/<family>/<system>.py`` are ``tests/models/<family>/<system>.yaml``,
``test_<system>.py`` beside it (if there is none, the folder's tests that bear no file's name), and
the system's part of the conformance suite. What several systems
share is guarded by all files of fingerprints and the test file at the same path below ``tests/``.
``--tests PATH ...`` names others, YAML or Python, perhaps with ``::test``.

Each change runs in a fork of a process that has imported the libraries, with the changed source in
place of the file. Nothing on the disk is touched.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import yaml

from tests.mutations import Mutant, mutants
from tests.test_house import imports, modules
from zoo.models._catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
SURVIVORS = ROOT / "tests" / "survivors.yaml"
LIMIT = 0.05
#: Tests of the conformance suite about matters that no change of a formula touches.
SLOW = ("compile", "export", "int8", "bfloat16", "autocast", "adapters")


def guards(file: Path) -> tuple[list[Path], list[str]]:
    """Files of fingerprints, and arguments of pytest, that guard a source file by its place."""
    inner = file.relative_to("zoo")
    beside, name = Path("tests") / inner.parent, inner.stem.lstrip("_")
    tests = sorted(beside.glob("test_*.py"))
    if (beside / f"test_{name}.py").exists():
        tests = [beside / f"test_{name}.py"]
    else:  # those that are about no other file
        stems = {path.stem.lstrip("_") for path in file.parent.glob("*.py")}
        tests = [test for test in tests if test.stem.removeprefix("test_") not in stems]
    functions = [str(test) for test in tests]
    for own in (beside / f"{inner.stem}.yaml", beside / f"{name}.yaml"):
        if own.exists():
            parts = [f"{own.parent.name}-{own.stem} and not {' and not '.join(SLOW)}"]
            module = ".".join(file.with_suffix("").parts)
            models = [entry.name for entry in catalogue().values() if entry.module == module]
            parts += [f"declared_count and {model}" for model in models]
            chosen = " or ".join(f"({part})" for part in parts)
            suite = ["tests/models/test_conformance.py", "-k", f"not conformance or {chosen}"]
            return [own], functions + suite
    return sorted(Path("tests").glob("*/**/*.yaml")), functions


class Runner:
    """Runs the guards of one source file, as it is or changed, each time in a fork."""

    def __init__(self, file: Path, cases: list[Path], functions: list[str]) -> None:
        self.file, self.functions = file, functions
        self.module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        self.source = file.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.case_files = cases
        #: Guard -> (seconds, lines of the file that it executes).
        self.cases: dict[str, tuple[float, set[int]]] = {}
        self.items: dict[str, tuple[float, set[int]]] = {}

    def measure(self) -> None:
        """Run all guards on the file as it is: they must pass; learn what each executes."""
        found = fork(lambda: self._measure_all(), 3600)
        if found is None:
            raise SystemExit(f"{self.file}: the guards broke down on the file as it is")
        if found["faults"]:
            raise SystemExit(f"{self.file}: fails as it is: {found['faults'][0]}")
        above = dependents(self.module)
        for name in found["modules"]:
            if not name.startswith(("tests", "test_", "conftest")) and name not in above:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        self.cases = {k: (t, set(lines)) for k, (t, lines) in found["cases"].items()}
        self.items = {k: (t, set(lines)) for k, (t, lines) in found["items"].items()}

    def _measure_all(self) -> dict[str, Any]:
        from tests import fingerprints

        cases, faults = {}, []
        for path in self.case_files:
            for name, case in fingerprints.load(path).items():
                with tracing(self.file) as lines:
                    began = time.process_time()
                    differences = case.differences()
                    cases[f"{path}:{name}"] = (time.process_time() - began, sorted(lines))
                faults += [f"{path} {name}: {fault}" for fault in differences]
        recorder = Recorder(self.file)
        if self.functions and not faults:
            code = pytest.main([*QUIET, *self.functions], plugins=[recorder])
            faults += [] if code in (0, 5) else [*recorder.failed, f"pytest exits with {code}"]
        used = [c for c in cases if cases[c][1]]
        kept = {name: cases[name] for name in used}
        items = {name: found for name, found in recorder.found.items() if found[1]}
        return {"cases": kept, "items": items, "faults": faults, "modules": list(sys.modules)}

    def survives(self, mutant: Mutant) -> bool:
        """Whether no guard that executes the changed line notices."""

        def chosen(found: dict[str, tuple[float, set[int]]]) -> list[str]:
            lines = set(mutant.lines)
            hit = [name for name, (_, seen) in found.items() if not lines or lines & seen]
            return sorted(hit, key=lambda name: found[name][0])

        cases, items = chosen(self.cases), chosen(self.items)
        if not cases and not items:
            return True
        seconds = sum(self.cases[c][0] for c in cases) + sum(self.items[i][0] for i in items)
        return fork(lambda: self._passes(mutant, cases, items), 60 + 3 * seconds) is True

    def _passes(self, mutant: Mutant, cases: list[str], items: list[str]) -> bool:
        if self.module in sys.modules:
            raise RuntimeError(
                f"{self.module} is imported already, its changes would have no effect"
            )
        mutant.apply()
        sys.meta_path.insert(0, Changed(self.module, self.file, self.tree))
        from tests import fingerprints

        for case in cases:
            path, _, name = case.rpartition(":")
            if fingerprints.load(Path(path))[name].differences():
                return False
        if not items:
            return True
        chosen = Chosen(items)
        return pytest.main([*QUIET, "-x", *self.functions], plugins=[chosen]) == 0


def dependents(module: str) -> set[str]:
    """A module of zoo, and those that import it, directly or not."""
    found, more = {module}, {module}
    graph = {name: set(imports(file)) for name, file in modules().items()}
    while more:
        more = {name for name, targets in graph.items() if targets & found} - found
        found |= more
    return found


QUIET = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


class Recorder:
    """A pytest plugin that learns which lines of a file each test executes, and its time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, tuple[float, list[int]]] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.process_time()
        with tracing(self.file) as lines:
            yield
        self.found[item.nodeid] = (time.process_time() - began, sorted(lines))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Chosen:
    """A pytest plugin that runs some tests, the first first."""

    def __init__(self, items: list[str]) -> None:
        self.items = items

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {item.nodeid: item for item in items}
        items[:] = [known[name] for name in self.items if name in known]


@contextlib.contextmanager
def tracing(file: Path) -> Iterator[set[int]]:
    """Lines of a file that are executed meanwhile."""
    lines: set[int] = set()
    name = str(ROOT / file)

    def line(frame: FrameType, event: str, _: Any) -> Any:
        lines.add(frame.f_lineno)
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line(frame, event, _) if frame.f_code.co_filename == name else None

    sys.settrace(call)
    try:
        yield lines
    finally:
        sys.settrace(None)


class Changed(importlib.abc.MetaPathFinder):
    """Finds one module in a syntax tree instead of its file."""

    def __init__(self, module: str, file: Path, tree: ast.Module) -> None:
        self.module, self.file, self.tree = module, file, tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        loader = TreeLoader(fullname, str(ROOT / self.file))
        loader.tree = self.tree
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


class TreeLoader(importlib.machinery.SourceFileLoader):
    """Compiles a syntax tree instead of the file's text."""

    tree: ast.Module

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.tree, self.path, "exec")


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


def report(file: Path, options: argparse.Namespace) -> bool:
    """Change one file in all ways; print what survives. Whether that is too much."""
    cases, functions = guards(file)
    if options.tests:
        cases = [Path(t) for t in options.tests if t.endswith(".yaml")]
        functions = [t for t in options.tests if not t.endswith(".yaml")]
    runner = Runner(file, cases, functions)
    changes = mutants(runner.tree, runner.source)
    if options.lines:
        first, _, last = options.lines.partition("-")
        changes = [m for m in changes if int(first) <= m.line <= int(last or first)]
    changes = changes[options.part[0] :: options.part[1]]
    runner.measure()
    known = yaml.safe_load(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.exists() else {}
    alive, unexplained = 0, 0
    for number, mutant in enumerate(changes, start=1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(changes)} ", end="", file=sys.stderr)
        if runner.survives(mutant):
            alive += 1
            reason = explanation(file, mutant, known or {})
            unexplained += reason is None
            mark = "explained" if reason else "SURVIVES "
            print(f"{mark} {file}:{mutant.line}: {mutant.text}\n    {mutant.change}", flush=True)
    share = alive / max(len(changes), 1)
    print(
        f"{file}: {len(changes)} changes, {alive} survive ({share:.1%}), {unexplained} unexplained",
        flush=True,
    )
    return bool(unexplained) or share > LIMIT


def main(arguments: list[str] | None = None) -> int:
    """Change the files and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", help="what guards the files")
    parser.add_argument("--lines", help="change these lines alone, such as 20-60")
    parser.add_argument(
        "--part", type=lambda t: tuple(map(int, t.split("/"))), default=(0, 1), metavar="I/N",
        help="change every Nth place alone, from the Ith on",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    failed = [report(file, options) for file in options.files]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
