"""Which tests notice a fault in a source file: those of its place, and those that import it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests import fingerprints
from tests.test_house import modules
from zoo.lazy import public_classes
from zoo.models._catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
CONFORMANCE = "tests/models/test_conformance.py"
#: Tests of the conformance suite about matters that no change of a formula touches.
SLOW = ("compile", "export", "int8", "bfloat16", "autocast", "adapters")
#: How many imports, and how many files of tests, :attr:`Guards.near` goes.
FAR, MANY = 3, 10
#: Tests that start processes, train or try every model: dear, and of no formula.
WIDE = {
    *("test_cli", "test_bench", "test_ddp", "test_fuzz", "test_packaging", "test_predict"),
    *("test_resume", "test_start", "test_trust", "test_house", "test_mutations", "test_all"),
    *("test_conformance", "test_fingerprints", "test_recipes", "test_round_trip", "test_names"),
    *("test_install", "test_cuda", "test_cuda_large", "test_cuda_emulated", "test_convert"),
}


@dataclass
class Guards:
    """What notices a fault in a file.

    Attributes:
        cases: files of fingerprints.
        functions: files of tests, perhaps with ``::test``.
        suite: parts of the names of the conformance tests that belong to it.
        near: further files of tests that import it, the nearest first.
    """

    cases: list[Path]
    functions: list[str]
    suite: list[tuple[str, ...]] = field(default_factory=list)
    near: list[str] = field(default_factory=list)

    def in_suite(self, item: pytest.Item) -> bool:
        """Whether a test is the file's part of the conformance suite."""
        name = item.nodeid
        return (
            name.startswith(CONFORMANCE)
            and any(all(word in name for word in part) for part in self.suite)
            and not any(word in name for word in SLOW)
        )


def is_of(name: str, place: str) -> bool:
    """Whether a test is one of a folder, a file, or a function with arguments."""
    return name == place or name.startswith((f"{place}::", f"{place}[", f"{place}/"))


def guards(file: Path) -> Guards:
    """The guards of a source file by its place and by imports."""
    inner = file.relative_to("zoo")
    beside, name = Path("tests") / inner.parent, inner.stem.lstrip("_")
    stems = {path.stem.lstrip("_") for path in file.parent.glob("*.py")} - {name}
    tests = sorted(beside.glob("test_*.py"))
    functions = [str(t) for t in tests if t.stem.removeprefix("test_") not in stems]
    above = dependents(module_of(file))
    for own in (beside / f"{inner.stem}.yaml", beside / f"{name}.yaml"):
        if own.exists():
            models = [e.name for e in catalogue().values() if e.module == module_of(file)]
            suite = [(f"{own.parent.name}-{own.stem}",), *(("declared_count", m) for m in models)]
            return Guards([own], functions, suite, near(file, above, functions))
    package = module_of(file).rpartition(".")[0]
    users = {m.rpartition(".")[2].lstrip("_") for m in above if m.startswith(f"{package}.")}
    functions = [str(t) for t in tests if str(t) in functions or t.stem[len("test_") :] in users]
    shared = [path for path in sorted(Path("tests").glob("*/**/*.yaml")) if reaches(path, above)]
    return Guards(shared, functions, [], near(file, above, functions))


def module_of(file: Path) -> str:
    """A source file's module."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def dependents(module: str) -> dict[str, int]:
    """A module, and those of zoo and of the tests that import it: over how many imports."""
    found, more, distance = {module: 0}, {module}, 0
    while more:
        distance += 1
        more = {name for name, targets in graph().items() if targets & more} - found.keys()
        found |= dict.fromkeys(more, distance)
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Every module of zoo and of the tests -> what it imports of these."""
    files = dict(modules())
    for file in sorted((ROOT / "tests").rglob("*.py")):
        files[".".join(file.relative_to(ROOT).with_suffix("").parts)] = file
    return {name: set(_imports(file, set(files))) for name, file in files.items()}


def _imports(file: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known - {"zoo"})
        elif isinstance(node, ast.ImportFrom) and node.module:
            short = public_classes(node.module) if node.module in ("zoo.tasks", "zoo.data") else {}
            for name in node.names:
                inner = short.get(name.name, f"{node.module}.{name.name}")
                if inner in known:
                    yield inner
                elif node.module != "zoo":  # whose names are found when they are used
                    yield node.module


def near(file: Path, above: dict[str, int], but: list[str]) -> list[str]:
    """Files of tests for more than a file: those of the folders above, then those that import it.

    Args:
        file: of the source.
        above: what imports it; see :func:`dependents`.
        but: files of tests that are left out.
    """
    folders = [Path("tests") / parent for parent in file.relative_to("zoo").parents[1:-1]]
    found = [(0, str(test)) for folder in folders for test in sorted(folder.glob("test_*.py"))]
    for name, distance in above.items():
        if name.startswith("tests.") and distance <= FAR:
            found.append((distance, str(Path(*name.split(".")).with_suffix(".py"))))
    wanted = {
        path: (distance, Path(path).stat().st_size)
        for distance, path in reversed(found)
        if Path(path).name.startswith("test_") and Path(path).stem not in WIDE and path not in but
    }
    return sorted(wanted, key=wanted.__getitem__)[:MANY]


def reaches(path: Path, above: dict[str, int]) -> bool:
    """Whether a case of a file of fingerprints can execute one of these modules."""
    for case in fingerprints.load(path).values():
        entry = catalogue().get(case.model)
        model = entry.module if entry else case.model.partition(":")[0]
        if {model, case.call.partition(":")[0]} & above.keys():
            return True
    return False
