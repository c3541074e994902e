"""Programs that loop, fork, eat memory, remove files or reach the network do no harm."""

from __future__ import annotations

import json
import os
import platform

import pytest

from zoo.decoding.programs import TestCases
from zoo.decoding.sandbox import Limits, Outcome, run_program
from zoo.errors import ZooError

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="needs Landlock"
)
LIMITS = Limits(seconds=2.0, memory=256 << 20, output=1 << 20)


def outcome(source: str) -> Outcome:
    return run_program(source, [""], limits=LIMITS)[0]


def test_programs_read_and_write_and_are_called() -> None:
    source = "a, b = map(int, input().split())\nprint(a + b)"
    assert run_program(source, ["1 2", "3 4"]) == [("ran", "3\n"), ("ran", "7\n")]
    assert run_program("def f(a, b):\n  return [a, b]", [[1, 2]], "f") == [("ran", [1, 2])]
    called = "import math\nclass Solution:\n  def f(self, a):\n    return math.sqrt(a)"
    assert run_program(called, [[4]], "f") == [("ran", 2.0)]
    assert outcome("def") == ("compile error", None)
    assert outcome("1 / 0") == ("runtime error", "ZeroDivisionError")
    assert outcome("import sys\nprint(1)\nsys.exit(0)") == ("ran", "1\n")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.remove(VICTIM)",
        "open(VICTIM, 'w').write('gone')",
        "import os\nos.truncate(VICTIM, 0)",
        "import os\nos.chmod(VICTIM, 0)",
        "import os\nos.rename(VICTIM, VICTIM + '2')",
        "import shutil, os\nshutil.rmtree(os.path.dirname(VICTIM))",
        "print(open(VICTIM).read())",
        "import os\nos.mkdir('/tmp/made-by-a-program')",
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['sleep', '100'])",
        "import os\nos.setsid()",
        "import socket\nsocket.socket()",
        "import os\nos.kill(os.getppid(), 9)",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.fork() < 0\nraise PermissionError",
    ],
)
def test_what_reaches_out_is_not_permitted(source: str, tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    found = outcome(f"VICTIM = {str(victim)!r}\n{source}")
    assert found.kind == "runtime error"
    assert found.value in ("PermissionError", "OSError")
    assert victim.read_text() == "kept" and os.stat(victim).st_mode & 0o400
    assert not os.path.exists("/tmp/made-by-a-program")


def test_what_takes_too_much_is_ended(tmp_path) -> None:
    assert outcome("while True: pass").kind == "no answer"
    assert outcome("x = bytearray(10 ** 10)") == ("runtime error", "MemoryError")
    assert outcome("import os\nwhile 1: os.write(1, b'x' * 10 ** 6)").kind == "no answer"
    assert outcome("import os\nos._exit(0)").kind == "no answer"
    forged = 'import os\nos.write(1, b\'{"key": "", "results": [["ran", "1"]]}\')\nos._exit(0)'
    assert outcome(forged).kind == "no answer"


def test_test_cases_of_apps(tmp_path) -> None:
    file = tmp_path / "input_output.json"
    file.write_text(json.dumps({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2\n", " 4", "7"]}))
    cases = TestCases.read(file)
    source = "print(2 * int(input()))"
    assert cases.codes(source) == [True, True, False]
    assert cases.pass_rate(source) == pytest.approx(2 / 3)
    assert cases.codes("x = = 1") == [-2] * 3 and cases.codes("boom") == [-1] * 3
    public, private = cases.split()
    assert (list(public.inputs), list(private.inputs)) == (["1\n"], ["2\n", "3\n"])
    assert len(cases.split(2)[0].inputs) == 2
    named = TestCases([[1], [2]], [[2], 3], "f")
    assert named.codes("def f(a):\n  return a + 1") == [True, True]
    for wrong in ("{}", "x", '{"inputs": [1], "outputs": []}'):
        file.write_text(wrong)
        with pytest.raises(ZooError, match="input"):
            TestCases.read(file)
