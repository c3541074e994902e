"""The layout stays as CONTRIBUTING draws it: floors, addresses, small files, shared layers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import zoo
from tests.tiny import ROOT
from zoo.lazy import public_classes

#: What an import may reach: its own floor and those before it. Parts of ``zoo`` on one line do not
#: import each other.
FLOORS = (
    ("errors", "lazy"),
    ("atomic",),
    ("arguments", "command", "devices", "show"),
    ("recipes",),
    ("trust",),
    ("ops", "plots"),
    ("layers", "checkpoints"),
    ("compat",),
    ("models",),
    ("losses",),
    ("data", "decoding"),
    ("metrics",),
    ("tasks",),
    ("runs",),
    ("recipe_errors", "trainer_errors"),
    ("cli",),
    ("proofs", "bench", "predictor"),
    ("list", "info", "convert", "cp"),
    ("train", "check", "evaluate", "predict", "generate", "prove", "export", "report", "demo"),
    ("new",),
    ("__main__",),
)
#: Lines of a file. What is longer has a part that wants a place of its own.
LONGEST = 450
#: Addresses without a model file: ways of decoding, and wrappers of other systems' models.
NO_MODEL = {
    "decoding/aded",
    "decoding/ead",
    "decoding/lud",
    "decoding/minicache",
    "decoding/momentum",
    "decoding/pg_td",
    "decoding/spectr",
    "decoding/superposed",
    "decoding/token_recycling",
    "language/token_classification",
}
#: Addresses without a recipe at the paper's scale: the models that small recipes train.
NO_PAPER = {"decoding/base_lm", "language/token_classification", "multimodal/mmmamba"}


def module_name(file: Path) -> str:
    """``zoo/ops/ssd.py`` -> ``zoo.ops.ssd``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """All modules of the package."""
    return {module_name(file): file for file in sorted((ROOT / "zoo").rglob("*.py"))}


def imports(file: Path, everywhere: bool = True) -> Iterator[str]:
    """Modules of zoo that a file imports; those inside functions only if ``everywhere``."""
    tree = _parsed(file)
    nodes = list(ast.walk(tree) if everywhere else _at_import(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "zoo")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "zoo":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in modules() else str(node.module)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or typing_only:
            continue
        yield child
        yield from _at_import(child)


def floor_of(module: str) -> int:
    part = [*module.split("."), "__init__"][1]
    for number, parts in enumerate(FLOORS):
        if part in parts:
            return number
    pytest.fail(f"{module} stands on no floor: enter zoo.{part} into FLOORS")


def test_imports_point_down():
    wrong = []
    for name, file in modules().items():
        if name == "zoo":
            continue
        part, floor = name.split(".")[1], floor_of(name)
        for target in imports(file):
            if target == "zoo":  # whose names are found when they are used
                continue
            other = target.split(".")[1]
            if other != part and floor_of(target) >= floor:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_modules_do_not_import_in_a_circle():
    graph = {name: set(imports(file, everywhere=False)) for name, file in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            for target in graph.get(name, ()):
                if target != name and not name.startswith(target + "."):  # its own package
                    visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_are_short():
    sources = [*ROOT.glob("zoo/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("csrc/**/*.*")]
    long = {}
    for file in sources:
        lines = file.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST:
            long[str(file.relative_to(ROOT))] = lines
    assert not long


def addresses(tree: str, pattern: str) -> set[str]:
    """``<family>/<system>`` of the files of a tree that match; those of no paper are left out."""
    found = set()
    for file in (ROOT / tree).glob(pattern):
        family, system = file.relative_to(ROOT / tree).with_suffix("").parts[:2]
        if not system.startswith("_") and system != "index":
            found.add(f"{family}/{system}")
    return found


def test_a_paper_has_one_address():
    recipes = addresses("recipes", "*/*/*.yaml")
    pages = addresses("docs/systems", "*/*.md")
    models = addresses("zoo/models", "*/*.py")
    assert recipes - pages == set(), "without a page"
    assert recipes - models == NO_MODEL, "without a model file"
    assert models - recipes == set(), "without a recipe: is it a paper, or does it want a _?"
    assert addresses("zoo/proofs", "*/*.py") <= addresses("recipes", "*/*/proof.yaml")
    assert addresses("docs/results", "*/*.json") <= addresses("recipes", "*/*/proof.yaml")
    for kind in ("paper", "small"):
        assert recipes - addresses("recipes", f"*/*/{kind}.yaml") <= NO_PAPER, f"without {kind}"


def test_families_hold_only_modules_and_names_are_unique():
    for package in ("zoo.tasks", "zoo.data"):
        assert public_classes(package)  # raises where two modules define one name
    systems = [address.partition("/")[2] for address in addresses("zoo/proofs", "*/*.py")]
    assert len(systems) == len(set(systems))  # zoo.proofs.<system> finds them


def test_tests_have_the_same_paths():
    strays = []
    for file in (ROOT / "tests").glob("*/**/test_*.py"):
        folder = file.parent.relative_to(ROOT / "tests")
        is_tool = (ROOT / "tests" / folder / "__init__.py").exists()  # with tests of its own
        if not is_tool and not any((ROOT / base / folder).is_dir() for base in ("zoo", ".")):
            strays.append(str(file.relative_to(ROOT)))
    assert not strays


def test_a_layer_has_two_users():
    users: dict[str, set[str]] = {}
    for name, file in modules().items():
        for target in imports(file):
            if target.startswith("zoo.layers.") and target != name:
                users.setdefault(target, set()).add(name)
    lonely = {
        name: users.get(name, set())
        for name in modules()
        if name.startswith("zoo.layers.") and len(users.get(name, ())) < 2
    }
    assert not lonely, "a layer with one user stands in that user's file"


def test_every_model_has_a_page_that_names_it():
    families: dict[str, str] = {}
    for page in sorted((ROOT / "docs/systems").glob("*/*.md")):
        families[page.parent.name] = families.get(page.parent.name, "") + page.read_text()
    missing = []
    for name in zoo.list_models():
        info = zoo.model_info(name)
        # a page may name the variants of a system by what they share: `vmamba_tiny`, `_small`
        named = rf"\b({re.escape(name)}|{re.escape(info.system)})"
        if not re.search(named, families.get(info.family, "")):
            missing.append(name)
    assert not missing


def test_pages_keep_no_unfinished_merge():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert not [page.name for page in pages if marks.search(page.read_text(encoding="utf-8"))]
