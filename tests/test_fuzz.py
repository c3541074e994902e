from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz._runner import ROOT, domains, run

CASES = """
import os, pathlib, time

COUNT = pathlib.Path(__file__).with_name("count")

def case(random):
    with COUNT.open("a") as count:
        count.write(".")
    what = DOINGS[COUNT.stat().st_size - 1]
    assert os.listdir() == [], "the folder is not empty"
    open("left behind", "w").close()
    if what == "assertion":
        assert False, "wrong"
    if what == "exception":
        raise KeyError("foreign")
    if what == "crash":
        os.abort()
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(1000)
    print("an ordinary case may print")
"""


@pytest.fixture
def domain(tmp_path: Path, monkeypatch):
    """A module whose cases do these things, one after the other."""

    def make(*doings: str) -> str:
        (tmp_path / "made_domain.py").write_text(f"DOINGS = {list(doings)!r}\n{CASES}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "made_domain"

    return make


def test_every_way_to_fail_is_found_and_the_rest_still_runs(domain) -> None:
    doings = ["", "assertion", "", "crash", "exception", "hang", "exit", ""]
    found = run(domain(*doings), 0, list(range(len(doings))), timeout=20)
    by_case = {f.case: f.what for f in found}
    assert sorted(by_case) == [1, 3, 4, 5, 6]
    assert by_case[1] == "wrong"
    assert "SIGABRT" in by_case[3]
    assert "KeyError" in by_case[4]
    assert "still running" in by_case[5]
    assert "exit code 3" in by_case[6]


def test_a_seed_makes_the_same_cases(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "numbers_domain.py").write_text(
        "def case(random):\n    assert False, str(random.random())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = list(run("numbers_domain", 3, [0, 1, 2], 60))
    assert list(run("numbers_domain", 3, [2], 60)) == first[2:]
    assert len({f.what for f in first}) == 3
    assert list(run("numbers_domain", 4, [0], 60)) != first[:1]


@pytest.mark.slow
def test_a_few_cases_of_every_domain_find_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--cases", "16"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    for name in domains():
        assert f"{name}: " in result.stdout
