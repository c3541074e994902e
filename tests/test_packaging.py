"""What is installed is what this was written for; what is packed is all that it needs."""

import ast
import fnmatch
import tarfile
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.tiny import ROOT

tomllib = pytest.importorskip("tomllib")

#: Packages of which we use more than the documented interface -> what to run with a new version,
#: before its upper bound is raised.
BOUND = {
    "jsonargparse": "tests/test_cli.py (zoo.recipe_errors reads its errors), tests/test_trust.py "
    "(zoo.cli puts its settings back), tests/recipes/test_round_trip.py",
    "lightning": "tests/test_resume.py and tests/test_checkpoints.py (zoo.runs.checkpoints reads "
    "and writes the counters of its loops), tests/test_ddp.py, tests/test_trust.py",
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name, tests", BOUND.items())
def test_upper_bounds(name, tests):
    requirements = map(Requirement, project()["project"]["dependencies"])
    (requirement,) = (one for one in requirements if one.name == name)
    upper = [one for one in requirement.specifier if one.operator in ("<", "<=", "~=", "==")]
    assert upper, f"{name} needs an upper bound: its private parts or prose are used"
    assert requirement.specifier.contains(version(name)), (
        f"{name} {version(name)} is beyond {requirement.specifier}: run {tests}, "
        "then raise the bound in pyproject.toml"
    )


def test_every_private_import_of_a_bound_package_is_known():
    """A door that is not documented is opened in these files alone."""
    found = set()
    for file in sorted((ROOT / "zoo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            package, _, rest = (module or "").partition(".")
            if package in BOUND and any(part.startswith("_") for part in rest.split(".")):
                found.add(f"{file.relative_to(ROOT)}: {module}")
    assert found == {"zoo/cli.py: jsonargparse._common"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> set[str]:
    """Names in the source distribution, made as pip does, without building the kernels."""
    import shutil
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    command = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder)],
        cwd=folder / "tree", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def test_the_source_distribution_holds_all_that_builds_it(packed):
    patterns = ("*.h", "*.cuh", "*.cpp", "*.cu", "*.inc")
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    }
    assert len(sources) > 40 and sources <= packed
    assert {"setup.py", "pyproject.toml", "zoo/ops/schemas.inc", "zoo/py.typed"} <= packed


def test_the_source_distribution_holds_the_recipes_and_the_data(packed):
    recipes = {str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/*/*/*.yaml")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "zoo").rglob("*.py")}
    spoken = {str(p.relative_to(ROOT)) for p in ROOT.glob("zoo/data/synthetic/spoken/*.*")}
    assert recipes <= packed and modules <= packed and spoken <= packed
    assert not any(name.endswith((".so", ".pyc")) for name in packed)
