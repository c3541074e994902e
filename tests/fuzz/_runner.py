"""Cases of one domain in child processes; a new child after each one that died."""

from __future__ import annotations

import json
import pkgutil
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Finding:
    """A case that did not go as it should."""

    case: int
    what: str


def domains() -> list[str]:
    """The modules of this folder that can be run."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(m.name for m in found if not m.name.startswith(("_", "test_")))


def run(module: str, seed: int, cases: list[int], timeout: float) -> Iterator[Finding]:
    """Run these cases of a domain, one after the other; what is found, as soon as it is.

    Args:
        module: dotted name of the domain's module.
        seed: of all cases.
        cases: their numbers.
        timeout: seconds that a case may take.
    """
    left = list(cases)
    while left:
        over = 0
        for what in _until_it_dies(module, seed, left, timeout):
            if what:
                yield Finding(left[over], what)
            over += 1
        left = left[over:]


def _until_it_dies(
    module: str, seed: int, cases: list[int], timeout: float
) -> Iterator[str | None]:
    """What was found in each case that is over, in one child process."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        command = [sys.executable, "-m", "tests.fuzz._child", module, str(seed), *map(str, cases)]
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert child.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()

        def read(stream=child.stdout) -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            for _ in cases:
                line = lines.get(timeout=timeout)
                if line is None:
                    yield _death(child.wait(), errors)
                    return
                yield json.loads(line)
        except queue.Empty:
            yield f"still running after {timeout:.0f} s"
        finally:
            child.kill()
            child.wait()


def _death(code: int, errors) -> str:
    errors.seek(0)
    last = errors.read().strip().splitlines()[-40:]
    try:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        how = f"exit code {code}"
    return "\n    ".join([f"the process died, {how}", *last])
